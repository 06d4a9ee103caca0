"""From the bytes of an image to uint8 pixels at the size of the model; normalising is the model's, on its device.

JPEG goes through simplejpeg, everything else (PNG, WebP, GIF, BMP, CMYK, 16 bits, palettes, alpha, animations: the
first frame) through Pillow. Sizes are read from the header first, so that no decompression bomb is unpacked. The one
resize is torch's antialiased bicubic on uint8, within one level of 255 of Pillow's. The transform for evaluation is
open_clip's: by default the short side to `size`, the centre cut out; models from elsewhere bring their own (`Resize`).
"""

from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from clip_lightning.compat import resize_bicubic_into, resize_bilinear_into
from clip_lightning.data.images.headers import HEAD_BYTES, jpeg_size, open_with_pillow
from clip_lightning.data.images.resize import SHORTEST as SHORTEST
from clip_lightning.data.images.resize import Resize as Resize
from clip_lightning.data.layouts.layout import BadSample, Pixels

MAX_PIXELS = 178_956_970  # Pillow's own limit
_ORIENTATION = 0x0112  # EXIF tag
LONGEST = 8  # short sides: of a longer image only this much is resized, around what is cut out


class Opened(NamedTuple):
    """An image whose header is read: its size after rotation, and what decodes it."""

    content: bytes | Pixels
    width: int
    height: int
    orientation: int = 1
    picture: Image.Image | None = None


def open_image(content: bytes | Pixels, *, max_pixels: int = MAX_PIXELS, exif_rotation: bool = False) -> Opened:
    """Reads the header; pixels are passed through.

    Raises: BadSample where it is not an image, or has more than `max_pixels`.
    """
    if isinstance(content, np.ndarray):
        return Opened(content, content.shape[1], content.shape[0])
    picture = None
    if (size := jpeg_size(content[:HEAD_BYTES])) is None:
        picture = open_with_pillow(content)
        size = picture.size
    width, height = size
    if width * height > max_pixels:
        raise BadSample("image too large", f"{width} x {height} pixels")
    orientation = 1
    if exif_rotation and (picture is not None or b"Exif" in content[:4096]):
        orientation = _orientation(picture or open_with_pillow(content))
        if orientation >= 5:
            width, height = height, width
    return Opened(content, width, height, orientation, picture)


def pixels_of(opened: Opened, shrink: int = 1) -> Pixels:
    """Decodes to uint8 [H, W, 3].

    Args:
        shrink: 2, 4 or 8 decodes a JPEG at this fraction of its size (by leaving out high frequencies, so the result
            is near a resize but not equal); other formats ignore it.
    Raises: BadSample where the bytes are damaged.
    """
    content = opened.content
    if isinstance(content, np.ndarray):
        return content
    pixels: Pixels | None = None
    if opened.picture is None:
        width, height = (opened.width, opened.height) if opened.orientation < 5 else (opened.height, opened.width)
        least = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)} if shrink > 1 else {}
        try:
            pixels = simplejpeg.decode_jpeg(content, colorspace="RGB", **least)
        except ValueError:  # Pillow accepts more than libjpeg's strict mode; what it refuses is damaged
            pixels = None
    if pixels is None:
        pixels = _decode_with_pillow(opened.picture or open_with_pillow(content))
    return _rotated(pixels, opened.orientation)


def resize_into(pixels: Pixels, out: Tensor, interpolation: str = "bicubic") -> None:
    """Resizes uint8 [h, w, 3] to the height and width of `out`, uint8 [3, H, W], antialiased."""
    if pixels.shape[:2] == out.shape[1:]:
        out.permute(1, 2, 0).numpy()[...] = pixels
        return
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    # torch.nn.functional.interpolate's own operator, written in place: a quarter less time than with a copy.
    (resize_bilinear_into if interpolation == "bilinear" else resize_bicubic_into)(image, out[None])


def resized(pixels: Pixels, height: int, width: int, interpolation: str = "bicubic") -> Tensor:
    """uint8 [h, w, 3] resized to uint8 [3, height, width], channels last in memory, antialiased."""
    out = torch.empty(height, width, 3, dtype=torch.uint8).permute(2, 0, 1)
    resize_into(pixels, out, interpolation)
    return out


def decode_eval(
    image: bytes | Pixels,
    size: int,
    *,
    resize: Resize = SHORTEST,
    max_pixels: int = MAX_PIXELS,
    exif_rotation: bool = False,
) -> Tensor:
    """The evaluation transform: by default short side to `size` pixels, centre cut out; uint8 [3, size, size].

    Raises: BadSample where the image cannot be decoded.
    """
    out = torch.empty(3, size, size, dtype=torch.uint8)
    eval_into(open_image(image, max_pixels=max_pixels, exif_rotation=exif_rotation), out, resize)
    return out


def eval_into(opened: Opened, out: Tensor, resize: Resize = SHORTEST) -> None:
    """`decode_eval` of an opened image, written to `out`, uint8 [3, size, size]."""
    pixels, size = pixels_of(opened), out.shape[1]
    if resize.mode == "squash":
        resize_into(pixels, out, resize.interpolation)
        return
    if resize.mode == "longest":
        _padded_into(pixels, out, resize.interpolation)
        return
    pixels = _without_ends(pixels)
    height, width = pixels.shape[:2]
    short = min(height, width)
    full = resized(pixels, size * height // short, size * width // short, resize.interpolation)
    # Python's round, half to even, as in torchvision's CenterCrop.
    top, left = round((full.shape[1] - size) / 2), round((full.shape[2] - size) / 2)
    out.copy_(full[:, top : top + size, left : left + size])


def _padded_into(pixels: Pixels, out: Tensor, interpolation: str) -> None:
    """The long side resized to the side of `out`, the rest black on both sides (open_clip's `resize_mode=longest`)."""
    size, ratio = out.shape[1], max(pixels.shape[:2]) / out.shape[1]
    height, width = (max(1, round(side / ratio)) for side in pixels.shape[:2])
    top, left = (size - height) // 2, (size - width) // 2
    out.zero_()
    out[:, top : top + height, left : left + width] = resized(pixels, height, width, interpolation)


def _without_ends(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    longest = LONGEST * min(height, width)
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    return pixels[top : top + longest, left : left + longest]


def _decode_with_pillow(picture: Image.Image) -> Pixels:
    try:
        if picture.mode.startswith("I"):  # 16 bits of grey: Pillow's own conversion clips at 255
            grey = np.asarray(picture).astype(np.int64).clip(0, 65535)
            return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=2)
        if picture.mode == "P" and "transparency" in picture.info:
            picture = picture.convert("RGBA")
        return np.array(picture.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise exceptions of any kind on damaged bytes
        cause = "truncated image" if "truncated" in str(error).lower() else "damaged image"
        raise BadSample(cause, f"{type(error).__name__}: {error}") from error


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF holds no orientation
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rotated(pixels: Pixels, orientation: int) -> Pixels:
    """Upright pixels, from the EXIF orientation 1 .. 8 that they are stored in."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
