"""Random changes of training images and the choice of a caption, drawn by (seed, epoch, sample id) and nothing else.

The crop follows torchvision's RandomResizedCrop (ten tries, then the centre), the colours torchvision's functions; only
the source of the numbers is this project's, so that torch's and numpy's global generators are never touched.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip_lightning.config.schema import AugmentConfig
from clip_lightning.data.layouts.layout import Ids, Pixels
from clip_lightning.data.order.counter_rng import AUGMENT, uniforms

Draws = npt.NDArray[np.float64]

_TRIES = 10
# Which number of a sample's row is for what; fixed, so that switching one augmentation on leaves the others alone.
CAPTION, _FLIP, _GREY, _LEFT, _TOP, _JITTER_ORDER = range(6)
_JITTER = slice(6, 10)
_AREA = slice(10, 10 + _TRIES)
_RATIO = slice(10 + _TRIES, 10 + 2 * _TRIES)
_NUM_DRAWS = 10 + 2 * _TRIES


def draw(seed: int, epochs: Ids, sample_ids: Ids) -> Draws:
    """All random numbers of some samples: float64 [n, draws] in [0, 1)."""
    return uniforms(AUGMENT, seed, epochs, sample_ids, num=_NUM_DRAWS)


def crop_boxes(config: AugmentConfig, widths: Ids, heights: Ids, draws: Draws) -> Ids:
    """Where to cut: int64 [n, 4] of left, top, width, height, in pixels of the padded image."""
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
    """Room for a batch: uint8 [num, 3, size, size], channels last in memory, as images are decoded."""
    return torch.empty(num, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
