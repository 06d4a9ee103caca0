"""Distribution shifts of the embedded scenes: the task `shape` as sketches, blurred, as renditions, at low contrast.

Class names, templates and scenes are those of `shape`, so that an accuracy differs by the shift alone. With the labels
of training scenes they make a robustness study (Taori et al. 2020) that needs no download. Scanned digits beside drawn
ones are the task `handwritten_digits`.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from clip_lightning.data.order.counter_rng import CounterRng
from clip_lightning.data.scenes import scenes
from clip_lightning.data.scenes.scene import Thing

REFERENCE = "shape"
_BLUR = 1.7  # pixels, standard deviation
_CONTRAST = 0.2  # of the original contrast
_STREAM = 100  # of draws; those of training and of the tasks are below


def _sketch(picture: np.ndarray, thing: Thing, rng: CounterRng) -> np.ndarray:
    """Dark outlines alone, on white paper."""
    scale = 4
    canvas = Image.new("L", (scenes.SIZE * scale, scenes.SIZE * scale), 255)
    brush = ImageDraw.Draw(canvas)
    cos, sin = np.cos(thing.turn), np.sin(thing.turn)
    turned = thing.radius * scenes.OUTLINES[thing.shape] @ np.array([[cos, sin], [-sin, cos]])
    shade, pen = int(rng.between(0, 70)), round(scale * rng.between(0.7, 1.2))
    for size in (1.0, 0.55) if thing.shape == "ring" else (1.0,):
        points = (scale * (size * turned + [thing.x, thing.y])).tolist()
        brush.line([tuple(point) for point in [*points, points[0]]], fill=shade, width=pen, joint="curve")
    return np.repeat(np.asarray(canvas.reduce(scale))[:, :, None], 3, axis=2)


def _blurred(picture: np.ndarray, thing: Thing, rng: CounterRng) -> np.ndarray:
    """The picture out of focus."""
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(_BLUR)))


def _rendition(picture: np.ndarray, thing: Thing, rng: CounterRng) -> np.ndarray:
    """The same outline in two colours without a name, as a mosaic, on a coloured ground: none occurs in training."""
    mask = np.asarray(scenes.cut_out(thing), np.float32)[:, :, None] / 255
    tones = rng.generator.random((3, 3), np.float32)
    tones[2] = 1 - tones[:2].mean(0)  # the ground differs from the shape
    tiles = np.kron(rng.generator.random((scenes.SIZE // 4, scenes.SIZE // 4)) > 0.5, np.ones((4, 4)))[:, :, None]
    mosaic = np.where(tiles, tones[0], tones[1])
    return (255 * (mask * mosaic + (1 - mask) * tones[2])).clip(0, 255).astype(np.uint8)


def _low_contrast(picture: np.ndarray, thing: Thing, rng: CounterRng) -> np.ndarray:
    """The picture in fog: every value near the middle."""
    return (127.5 + _CONTRAST * (picture.astype(np.float32) - 127.5)).astype(np.uint8)


_SHIFTS: dict[str, Callable[[np.ndarray, Thing, CounterRng], np.ndarray]] = {
    "shape_sketch": _sketch,
    "shape_blurred": _blurred,
    "shape_rendition": _rendition,
    "shape_low_contrast": _low_contrast,
}
SHIFTED_TASKS = tuple(_SHIFTS)


def shifted_set(name: str) -> scenes.ZeroShotSet:
    """One of `SHIFTED_TASKS`: its image k shows the thing of image k of `shape`.

    Raises:
        KeyError: for another name.
    """
    shift, reference = _SHIFTS[name], scenes.zero_shot_set(REFERENCE)
    stream = _STREAM + SHIFTED_TASKS.index(name)

    def image(k: int) -> np.ndarray:
        return shift(reference.image(k), scenes.thing_of_task(REFERENCE, k), CounterRng(k, stream))

    return reference._replace(image=image, split="fresh")


def labelled_scenes(part: str, num: int) -> tuple[list[int], np.ndarray]:
    """The first training scenes with a single shape: their sample ids, and labels int64 [num].

    Args:
        part: shape or color, the task whose classes the labels are.
    """
    names = {"shape": scenes.SHAPES, "color": scenes.COLOR_NAMES}[part]
    ids: list[int] = []
    labels: list[int] = []
    sample = 0
    while len(ids) < num:
        things = scenes.compose(CounterRng(sample, scenes.TRAINING)).things
        if len(things) == 1:
            ids.append(sample)
            labels.append(names.index(getattr(things[0], part)))
        sample += 1
    return ids, np.array(labels, np.int64)
