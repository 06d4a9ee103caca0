"""Random changes of training images and the choice of a caption, drawn by (seed, epoch, sample id) and nothing else.

`data.augment.crop=area` follows torchvision's RandomResizedCrop (ten tries, then the centre); `square` is the paper's
crop (Radford et al., 2021, section 2.4): Resize of the short side, then RandomCrop. Colours are torchvision's
functions. Only the source of the numbers is this project's, so that global generators are never touched.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip_lightning.config.schema import AugmentConfig
from clip_lightning.data.images.decode import LONGEST, Opened, pixels_of, resize_into, resized
from clip_lightning.data.layouts.layout import Ids, Pixels
from clip_lightning.data.order.counter_rng import AUGMENT, uniforms

Draws = npt.NDArray[np.float64]

_TRIES = 10
# The use of each number in a sample's row; fixed, so that one augmentation does not change the draws of another.
CAPTION, _FLIP, _GREY, _LEFT, _TOP, _JITTER_ORDER = range(6)
_JITTER = slice(6, 10)
_AREA = slice(10, 10 + _TRIES)
_RATIO = slice(10 + _TRIES, 10 + 2 * _TRIES)
_NUM_DRAWS = 10 + 2 * _TRIES


def draw(seed: int, epochs: Ids, sample_ids: Ids) -> Draws:
    """All random numbers of some samples: float64 [n, draws] in [0, 1)."""
    return uniforms(AUGMENT, seed, epochs, sample_ids, num=_NUM_DRAWS)


def crop_boxes(config: AugmentConfig, widths: Ids, heights: Ids, draws: Draws, size: int) -> Ids:
    """Where to cut: int64 [n, 4] of left, top, width, height in pixels of the padded image.

    Args:
        widths, heights: of the images, int64 [n], in pixels.
        draws: a row for each image.
        size: side of the training images in pixels; `crop=square` cuts from images resized to it.
    """
    if config.crop == "square":
        return _square_boxes(config, widths, heights, draws, size)
    widths, heights = widths + 2 * config.pad, heights + 2 * config.pad
    low, high = config.crop_scale
    area = (widths * heights)[:, None] * (low + (high - low) * draws[:, _AREA])
    log_low, log_high = np.log(config.crop_ratio)
    ratio = np.exp(log_low + (log_high - log_low) * draws[:, _RATIO])
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (width > 0) & (width <= widths[:, None]) & (height > 0) & (height <= heights[:, None])
    first, rows = fits.argmax(1), np.arange(len(widths))
    width, height = width[rows, first], height[rows, first]
    # No try fits: the largest centred box with an allowed ratio of sides.
    none = ~fits.any(1)
    shape = np.clip(widths / heights, config.crop_ratio[0], config.crop_ratio[1])
    width = np.where(none, np.minimum(widths, np.rint(heights * shape)), width)
    height = np.where(none, np.minimum(heights, np.rint(widths / shape)), height)
    left = np.where(none, (widths - width) // 2, np.floor(draws[:, _LEFT] * (widths - width + 1)))
    top = np.where(none, (heights - height) // 2, np.floor(draws[:, _TOP] * (heights - height + 1)))
    return np.stack([left, top, np.maximum(width, 1), np.maximum(height, 1)], axis=1).astype(np.int64)


def _square_boxes(config: AugmentConfig, widths: Ids, heights: Ids, draws: Draws, size: int) -> Ids:
    """Squares of `size` pixels in images whose short side is `size`, before the border is added."""
    full_widths, full_heights = _short_side_to(widths, heights, size)
    left = np.floor(draws[:, _LEFT] * (full_widths + 2 * config.pad - size + 1))
    top = np.floor(draws[:, _TOP] * (full_heights + 2 * config.pad - size + 1))
    sides = np.full(len(widths), size)
    return np.stack([left, top, sides, sides], axis=1).astype(np.int64)


def _short_side_to(widths: Ids, heights: Ids, size: int) -> tuple[Ids, Ids]:
    """Widths and heights after a resize of the short side, as torchvision's Resize; LONGEST sides at most."""
    short = np.minimum(widths, heights)
    longest = LONGEST * short
    return size * np.minimum(widths, longest) // short, size * np.minimum(heights, longest) // short


def crop_into(opened: Opened, box: list[int], out: Tensor, config: AugmentConfig, *, jpeg_scaling: bool) -> None:
    """Decodes an image and writes the box of `crop_boxes`, resized, to `out`, uint8 [3, size, size].

    Args: jpeg_scaling: decodes a JPEG at a fraction of its size where the box allows it; inexact.
    Raises: BadSample where the bytes are damaged.
    """
    size, shrink, is_square = out.shape[-1], 1, config.crop == "square"
    if jpeg_scaling and not config.pad:
        short = min(opened.width, opened.height) if is_square else min(box[2:])
        while shrink < 8 and short >= 2 * shrink * size:
            shrink *= 2
    pixels = pixels_of(opened, shrink)
    if is_square:
        width, height = _short_side_to(np.array(opened.width), np.array(opened.height), size)
        full = resized(_near(pixels, box, int(width), int(height)), int(height), int(width))
        out.copy_(torch.from_numpy(cut(full.permute(1, 2, 0).numpy(), box, config.pad)).permute(2, 0, 1))
        return
    if shrink > 1 and pixels.shape[0] < opened.height:
        box = [side // shrink for side in box]
    resize_into(cut(pixels, box, config.pad), out)


def _near(pixels: Pixels, box: list[int], width: int, height: int) -> Pixels:
    """Of an image longer than LONGEST short sides, the part around the box: memory stays bounded."""
    longest = LONGEST * min(pixels.shape[:2])
    left, top, size, _ = box
    x = round(max(0, pixels.shape[1] - longest) * min(1, left / max(width - size, 1)))
    y = round(max(0, pixels.shape[0] - longest) * min(1, top / max(height - size, 1)))
    return pixels[y : y + longest, x : x + longest]


def cut(pixels: Pixels, box: list[int], pad: int) -> Pixels:
    """The box (left, top, width, height) of an image [H, W, 3] that has `pad` pixels of reflected border."""
    left, top, width, height = box
    if not pad:
        return pixels[top : top + height, left : left + width]
    rows, columns = _reflected(pixels.shape[0], pad), _reflected(pixels.shape[1], pad)
    return pixels.take(rows[top : top + height], axis=0).take(columns[left : left + width], axis=1)


def change(image: Tensor, config: AugmentConfig, draws: Draws) -> None:
    """Flips and colours uint8 [3, S, S] in place, by one sample's row of draws."""
    if draws[_FLIP] < config.flip:
        image.copy_(image.flip(2))
    if config.color_jitter:
        image.copy_(_jittered(image, config.color_jitter, draws))
    if draws[_GREY] < config.grey:
        from torchvision.transforms.functional import rgb_to_grayscale

        image.copy_(rgb_to_grayscale(image, num_output_channels=3))


def _jittered(image: Tensor, strengths: list[float], draws: Draws) -> Tensor:
    """Brightness, contrast, saturation and hue by up to `strengths`, in one of their 24 orders."""
    from torchvision.transforms import functional

    changes = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    rank = int(draws[_JITTER_ORDER] * 24)
    left = list(range(4))
    for base in (6, 2, 1, 1):
        which, rank = left.pop(rank // base), rank % base
        if strength := strengths[which]:
            low = -strength if which == 3 else max(0.0, 1 - strength)
            high = strength if which == 3 else 1 + strength
            image = changes[which](image, low + (high - low) * float(draws[_JITTER][which]))
    return image


@lru_cache(maxsize=256)
def _reflected(length: int, pad: int) -> Ids:
    """Indices into 0 .. length - 1 of a border that mirrors without repeating the edge, also where it is longer."""
    if length == 1:
        return np.zeros(1 + 2 * pad, np.int64)
    index = np.abs(np.arange(-pad, length + pad)) % (2 * (length - 1))
    return np.minimum(index, 2 * (length - 1) - index)


def empty_images(num: int, size: int) -> Tensor:
    """Memory for a batch: uint8 [num, 3, size, size], channels last in memory, as images are decoded."""
    return torch.empty(num, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
