"""Images of an evaluation set that training data holds as well: near-duplicates by a perceptual hash and by embeddings.

The hash (63 bits) is the signs of the lowest 8 x 8 coefficients, without the constant one, of the cosine transform of
the grey image at 32 x 32 pixels (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions",
section 3.2.1, with signs instead of the median). Copies that are re-encoded, resized or slightly recoloured keep most
bits. The mirror image has the same coefficients with the odd horizontal ones negated, so that mirrored copies are found
from the same transform; cropped and rotated ones are not. Of the pairs with near hashes those are kept whose embeddings
have a high cosine, which drops images that are alike in their coarse brightness alone.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.fft import dctn

from clip_lightning.data.images.decode import open_image, pixels_of, resized
from clip_lightning.data.images.resize import Resize
from clip_lightning.data.layouts.layout import BadSample, Ids
from clip_lightning.evaluation.features import image_features
from clip_lightning.model.clip import CLIP

SIDE, LOW = 32, 8  # pixels that are transformed, coefficients that are kept, on a side
NUM_BITS = LOW * LOW - 1
DISTANCE, COSINE = 6, 0.9  # defaults: most differing bits, least cosine
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_PIECE, _THREADS = 512, 4
_ROWS, _COLUMNS = 256, 65_536  # hashes that are compared at a time, 270 MB

Encoded = bytes | np.ndarray


@dataclass(frozen=True)
class Pictures:
    """Images by number, of an evaluation set or of training data.

    Attributes:
        name: for messages.
        read: image k, encoded or uint8 [H, W, 3]; raises BadSample; called from several threads at once.
    """

    name: str
    read: Callable[[int], Encoded]


class Hashes(NamedTuple):
    """Hashes of images: uint64 [n], those of their mirror images, and the numbers of the images, int64 [n]."""

    bits: np.ndarray
    mirrored: np.ndarray
    numbers: Ids


def hash_images(pictures: Pictures, numbers: Ids) -> Hashes:
    """The hashes of images int64 [n]; those that cannot be read are left out."""

    def hashed(piece: Ids) -> Hashes:
        kept, grey = [], []
        for number in piece.tolist():
            try:
                pixels = resized(pixels_of(open_image(pictures.read(number))), SIDE, SIDE)
            except BadSample:
                continue
            kept.append(number)
            grey.append(pixels.permute(1, 2, 0).numpy() @ _GREY)
        bits = perceptual_hash(np.stack(grey) if grey else np.empty((0, SIDE, SIDE), np.float32))
        return Hashes(*bits, np.array(kept, dtype=np.int64))

    pieces = [numbers[k : k + _PIECE] for k in range(0, max(len(numbers), 1), _PIECE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(hashed, pieces))
    return Hashes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def perceptual_hash(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of grey images [n, 32, 32], uint64 [n], and those of their mirror images."""
    low = dctn(grey, axes=(1, 2))[:, :LOW, :LOW]
    across = np.where(np.arange(LOW) % 2, -1, 1)
    return _packed(low > 0), _packed(low * across > 0)


def _packed(bits: np.ndarray) -> np.ndarray:
    """bool [n, 8, 8] as uint64 [n]; the constant coefficient, which is brightness, is left out."""
    flat = bits.reshape(len(bits), LOW * LOW).copy()
    flat[:, 0] = False
    return np.packbits(flat, axis=1).view(np.uint64)[:, 0]


def near(first: Hashes, second: Hashes, distance: int) -> pd.DataFrame:
    """The pairs with at most so many differing bits, mirrored or not: columns first, second (numbers), distance."""
    found = []
    for start in range(0, len(first.bits), _ROWS):
        both = np.stack([first.bits[start : start + _ROWS], first.mirrored[start : start + _ROWS]])
        for begin in range(0, len(second.bits), _COLUMNS):
            differing = np.bitwise_count(both[:, :, None] ^ second.bits[begin : begin + _COLUMNS]).min(axis=0)
            i, j = np.nonzero(differing <= distance)
            columns = first.numbers[start + i], second.numbers[begin + j], differing[i, j].astype(np.int64)
            found.append(np.stack(columns, axis=1))
    pairs = np.concatenate(found) if found else np.empty((0, 3), np.int64)
    return pd.DataFrame(pairs, columns=["first", "second", "distance"])


def near_duplicates(
    model: CLIP,
    evaluated: tuple[Pictures, Hashes],
    trained: tuple[Pictures, Hashes],
    *,
    image_size: int,
    resize: Resize,
    distance: int = DISTANCE,
    cosine: float = COSINE,
) -> pd.DataFrame:
    """The pairs of an evaluation image and a training image that are near by both measures.

    Args:
        model: whose image tower embeds.
        evaluated, trained: images and their hashes.
        image_size, resize: how images become the model's input.
        distance: most bits of 63 that may differ.
        cosine: least cosine of the embeddings; of the evaluation image or its mirror image, the nearer one.
    Returns: image, sample_id, distance, cosine; one row for each pair, by image, its nearest first.
    """
    pairs = near(evaluated[1], trained[1], distance)
    if pairs.empty:
        return pd.DataFrame(columns=["image", "sample_id", "distance", "cosine"])

    def embedded(pictures: Pictures, numbers: Ids, *, mirrored: bool = False) -> np.ndarray:
        """Normalised embeddings, float32 [n, D]."""

        def read(k: int) -> Encoded:
            image = pictures.read(int(numbers[k]))
            return np.ascontiguousarray(pixels_of(open_image(image))[:, ::-1]) if mirrored else image

        found = image_features(
            model, Pictures(pictures.name, read), len(numbers), torch.device("cpu"),
            image_size=image_size, resize=resize, part="projected",
        )  # fmt: skip
        return found.values / np.linalg.norm(found.values, axis=1, keepdims=True)

    (first, i), (second, j) = (np.unique(pairs[name], return_inverse=True) for name in ("first", "second"))
    of_second = embedded(trained[0], second)[j]
    sides = [embedded(evaluated[0], first, mirrored=mirrored)[i] for mirrored in (False, True)]
    cosines = np.maximum(*((side * of_second).sum(1) for side in sides))
    found = pairs.set_axis(["image", "sample_id", "distance"], axis=1).assign(cosine=cosines)
    return found[found.cosine >= cosine].sort_values(["image", "distance", "sample_id"], ignore_index=True)
