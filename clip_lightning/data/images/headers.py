"""Format and size of an image from its first bytes. Imports no torch, so that the index's processes start fast."""

import io

import simplejpeg
from PIL import Image

from clip_lightning.data.layouts.layout import BadSample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
READABLE_SUFFIXES = frozenset(("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp"))  # of files in these formats
OTHER_SUFFIXES = frozenset(("tif", "tiff", "heic", "heif", "avif", "jxl", "jp2", "svg", "dng", "cr2", "nef"))  # images
HEAD_BYTES = 1 << 16  # of a JPEG hold its header, nearly always


def jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that simplejpeg can turn into RGB, from its first bytes; None for everything else."""
    if not head.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(head)
    except ValueError:
        return None
    return (width, height) if colors in ("YCbCr", "Gray", "RGB") else None


def open_with_pillow(content: bytes) -> Image.Image:
    """The image, its pixels not yet decoded.

    Raises: BadSample where the bytes are not an image.
    """
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadSample("image too large", str(error)) from error
    except Exception as error:  # Pillow's readers raise exceptions of any kind on a damaged header
        cause = "damaged image" if content.startswith(b"\xff\xd8") else "not an image"
        raise BadSample(cause, f"{type(error).__name__}: {error}") from error
