"""The embedded data: image and caption are drawn from an integer alone, so that nothing needs a download.

A scene holds one or two coloured shapes of several sizes, textures and places, or one handwritten digit, on varied
backgrounds. The pairs in `UNSEEN` are never drawn in training; the tasks test them, shapes, colours, and
the real scans of scikit-learn's `load_digits`, which training never sees.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.layout import Layout, Pixels, RawSample, digest
from clip_lightning.data.order.counter_rng import CounterRng
from clip_lightning.data.scenes.captions import DIGIT_NAMES, describe
from clip_lightning.data.scenes.scene import Scene, Thing
from clip_lightning.data.scenes.strokes import OVERSAMPLING, ink, scan_digit, write_digit

SIZE = 32  # pixels of a scene, square
NUM_SHARDS, SHARD_SIZE = 64, 16_384
VERSION = 1  # goes up with every change of what is drawn or written
TRAINING = 0  # stream of draws; the tasks have the next ones

# Hue, saturation and value, each low and high, in fractions of 1: far enough apart that people agree on the name.
COLORS = {
    "red": (-0.015, 0.01, 0.85, 1.0, 0.7, 1.0),
    "orange": (0.065, 0.09, 0.85, 1.0, 0.9, 1.0),
    "yellow": (0.15, 0.175, 0.75, 1.0, 0.9, 1.0),
    "green": (0.3, 0.38, 0.7, 1.0, 0.45, 0.8),
    "cyan": (0.485, 0.515, 0.6, 1.0, 0.85, 1.0),
    "blue": (0.61, 0.66, 0.75, 1.0, 0.6, 1.0),
    "purple": (0.745, 0.785, 0.6, 0.95, 0.45, 0.75),
    "pink": (0.89, 0.935, 0.35, 0.6, 0.95, 1.0),
}
TEXTURES = ("plain", "plain", "striped", "dotted", "checkered")
SIZES = {"small": (5.5, 6.5), "medium": (8.0, 9.5), "large": (11.0, 13.5)}  # radius in pixels
PLACES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "middle": (0, 0)}
BACKGROUNDS = {
    "black": (0.0, 0.12),
    "dark": (0.16, 0.32),
    "gray": (0.42, 0.58),
    "light": (0.7, 0.82),
    "white": (0.92, 1.0),
}


def _turns(radii: list[float], start: float = -0.25) -> np.ndarray:
    """A closed outline from radii at equal angles, float64 [points, 2]; angles in turns, -0.25 is upwards."""
    angles = 2 * np.pi * (start + np.arange(len(radii)) / len(radii))
    return np.array(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _heart() -> np.ndarray:
    t = 2 * np.pi * np.arange(32) / 32
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 2.5
    return np.stack([x, y], axis=1) / 15.5


def _cross(arm: float = 0.36) -> np.ndarray:
    quarter = np.array([(arm, -1), (arm, -arm), (1, -arm)])
    right_angle = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(right_angle, turns) for turns in range(4)])


# Outlines in a circle of radius 1, float64 [points, 2], y downwards. A ring is its outer edge; its hole is cut later.
OUTLINES = {
    "circle": 0.95 * _turns([1.0] * 28),
    "square": _turns([1.12] * 4, start=-0.125),
    "triangle": _turns([1.15] * 3) + np.array([0.0, 0.2]),
    "diamond": _turns([1.2, 0.8] * 2),
    "star": _turns([1.15, 0.48] * 5),
    "cross": _cross(),
    "ring": _turns([1.05] * 28),
    "heart": _heart(),
}
SHAPES, COLOR_NAMES = tuple(OUTLINES), tuple(COLORS)
PAIRS = tuple((color, shape) for color in COLOR_NAMES for shape in SHAPES)
# Two shapes are missing from each colour, and two colours from each shape.
UNSEEN = tuple(pair for pair in PAIRS if (SHAPES.index(pair[1]) - COLOR_NAMES.index(pair[0])) % len(SHAPES) in (1, 4))
SEEN = tuple(pair for pair in PAIRS if pair not in UNSEEN)


class Scenes(Layout):
    """The embedded data as a layout: sample k is drawn from k."""

    num_samples = NUM_SHARDS * SHARD_SIZE
    shard_sizes = np.full(NUM_SHARDS, SHARD_SIZE, np.int64)

    def read(self, sample_id: int) -> RawSample:
        """Draws a sample: image uint8 [32, 32, 3] and its one caption."""
        rng = CounterRng(sample_id, TRAINING)
        scene = compose(rng)
        caption = describe(scene, rng)
        return RawSample(draw(scene, rng), [caption])

    def captions(self, sample_id: int) -> list[str]:
        """The caption alone, without drawing."""
        rng = CounterRng(sample_id, TRAINING)
        return [describe(compose(rng), rng)]

    def fingerprint(self) -> str:
        """16 hex digits, of the version of what is drawn."""
        return digest("scenes", str(VERSION))


def build_scenes(config: DataConfig) -> Scenes:
    """The embedded data; it has no settings and no path."""
    return Scenes()


def compose(rng: CounterRng) -> Scene:
    """A scene of the training data."""
    background = rng.pick(tuple(BACKGROUNDS))
    kind = rng.between(0, 1)
    if kind < 0.4:
        return Scene((), background, digit=rng.index(10), ink=None if rng.chance(0.6) else rng.pick(COLOR_NAMES))
    if kind < 0.8:
        return Scene((place_one(rng, *rng.pick(SEEN)),), background)
    stacked = rng.chance(0.5)
    away = rng.between(7.0, 8.0), rng.between(7.0, 8.0)
    things = []
    for side, distance in zip((-1, 1), away, strict=True):
        across = rng.between(-5.0, 5.0)
        x, y = (across, side * distance) if stacked else (side * distance, across)
        place = ("top", "bottom")[side > 0] if stacked else ("left", "right")[side > 0]
        size = rng.pick(("small", "medium"))
        radius = min(rng.between(*SIZES[size]), distance - 0.4)
        things.append(_thing(rng, *rng.pick(SEEN), size, place, SIZE / 2 + x, SIZE / 2 + y, radius))
    return Scene(tuple(things), background, stacked)


def place_one(rng: CounterRng, color: str, shape: str) -> Thing:
    """One shape somewhere in the picture, not cut off by its border."""
    size = rng.pick(tuple(SIZES))
    radius = rng.between(*SIZES[size])
    place = rng.pick(tuple(PLACES))
    room = max(SIZE / 2 - 1.1 * radius, 0.0)
    x, y = (SIZE / 2 + room * (rng.between(0.6, 1.0) * side or rng.between(-0.3, 0.3)) for side in PLACES[place])
    return _thing(rng, color, shape, size, place, x, y, radius)


def _thing(rng: CounterRng, color: str, shape: str, size: str, place: str, x: float, y: float, radius: float) -> Thing:
    return Thing(color, shape, size, rng.pick(TEXTURES), place, x, y, radius, rng.between(-0.22, 0.22))


def draw(scene: Scene, rng: CounterRng) -> np.ndarray:
    """The picture of a scene, uint8 [32, 32, 3]."""
    if scene.digit is not None and scene.ink is None:
        return np.repeat(scan_digit(scene.digit, rng, SIZE)[:, :, None], 3, axis=2)
    picture = _background(scene.background, rng)
    if scene.digit is not None:
        assert scene.ink is not None
        height = SIZE * rng.between(0.6, 0.95)
        centre = SIZE / 2 + 0.4 * (SIZE - height) * np.array([rng.between(-1, 1), rng.between(-1, 1)])
        lines = [line * height + centre for line in write_digit(scene.digit, rng)]
        _lay(picture, ink(lines, SIZE, height * rng.between(0.08, 0.18)), paint(scene.ink, rng))
    for thing in scene.things:
        _lay(picture, cut_out(thing), _texture(thing.texture, rng) * paint(thing.color, rng))
    grain = rng.between(0.0, 0.06)
    picture += grain * (rng.generator.random(picture.shape, np.float32) - 0.5)
    return (picture.clip(0, 1) * 255).astype(np.uint8)


def paint(color: str, rng: CounterRng) -> np.ndarray:
    """One shade of a named colour, float32 [3] in 0..1."""
    hue_low, hue_high, saturation_low, saturation_high, value_low, value_high = COLORS[color]
    hue = rng.between(hue_low, hue_high)
    saturation = rng.between(saturation_low, saturation_high)
    value = rng.between(value_low, value_high)
    wheel = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1  # red, green, blue of a full hue
    return (value * (1 - saturation * (1 - wheel.clip(0, 1)))).astype(np.float32)


def _lay(picture: np.ndarray, mask: Image.Image, color: np.ndarray) -> None:
    """Lays a colour, float32 [3] or [32, 32, 3], over the picture where the mask is."""
    cover = np.asarray(mask, np.float32)[:, :, None] / 255
    picture += cover * (color - picture)


def cut_out(thing: Thing) -> Image.Image:
    """The mask of a shape, grey [32, 32]."""
    canvas = Image.new("L", (SIZE * OVERSAMPLING, SIZE * OVERSAMPLING))
    brush = ImageDraw.Draw(canvas)
    cos, sin = thing.radius * np.cos(thing.turn), thing.radius * np.sin(thing.turn)
    turned = OUTLINES[thing.shape] @ np.array([[cos, sin], [-sin, cos]])
    centre = np.array([thing.x, thing.y])
    brush.polygon((OVERSAMPLING * (turned + centre)).ravel().tolist(), 255)
    if thing.shape == "ring":
        brush.polygon((OVERSAMPLING * (0.55 * turned + centre)).ravel().tolist(), 0)
    return canvas.reduce(OVERSAMPLING)


_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32)


def _texture(name: str, rng: CounterRng) -> np.ndarray:
    """How bright a surface is, float32 [32, 32, 1] in 0..1."""
    if name == "plain":
        return np.ones((1, 1, 1), np.float32)
    turn, wave = rng.between(-0.6, 0.6), rng.between(1.1, 1.5)
    along = np.sin(wave * (np.cos(turn) * _X + np.sin(turn) * _Y))
    if name == "striped":
        dark = along > 0
    else:
        across = np.sin(wave * (np.cos(turn) * _Y - np.sin(turn) * _X))
        dark = along * across > 0 if name == "checkered" else along + across > 0.9
    return (1 - rng.between(0.3, 0.45) * dark.astype(np.float32))[:, :, None]


def _background(name: str, rng: CounterRng) -> np.ndarray:
    """A background nearly without colour, float32 [32, 32, 3] in 0..1: even, shaded, blotched or ruled."""
    light = rng.between(*BACKGROUNDS[name])
    tint = light * (1 + 0.12 * (np.array([rng.between(0, 1) for _ in range(3)], np.float32) - 0.5))
    kind = rng.index(4)
    if kind == 0:
        pattern = np.zeros((SIZE, SIZE), np.float32)
    elif kind == 1:
        pattern = (rng.between(-1, 1) * _X + rng.between(-1, 1) * _Y) / (2 * SIZE)
    elif kind == 2:
        blotches = Image.fromarray(rng.generator.random((4, 4), np.float32) - 0.5)
        pattern = np.asarray(blotches.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    else:
        pattern = 0.25 * np.sin(rng.between(0.3, 2.0) * (_X if rng.chance(0.5) else _Y))
    return tint + rng.between(0.1, 0.25) * pattern[:, :, None]


class ZeroShotSet(NamedTuple):
    """Images with classes, to be classified by texts alone.

    Attributes:
        classnames: names of the classes.
        templates: forms of a caption, `{}` for the class name.
        labels: int64 [n], the class of image k.
        image: image k, uint8 [H, W, 3].
        split: which part of its source the images are.
    """

    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    labels: np.ndarray
    image: Callable[[int], np.ndarray]
    split: str


TASKS = ("shape", "color", "unseen_combination", "handwritten_digits")
TASK_SIZE = 960  # images of each task of scenes: each of its pairs equally often
SCENE_TEMPLATES = ("a {}", "a photo of a {}", "a drawing of a {}")
COLOR_TEMPLATES = ("something {}", "a {} shape", "a photo of something {}")
DIGIT_TEMPLATES = ("the digit {}", "the number {}", "a handwritten {}")


def _in_turn(part: int) -> tuple[tuple[str, str], ...]:
    """The pairs of training, every colour (part 0) or shape (part 1) in turn."""
    groups = [[pair for pair in SEEN if pair[part] == name] for name in (COLOR_NAMES, SHAPES)[part]]
    return tuple(pair for row in zip(*groups, strict=True) for pair in row)


# Classes, which part of a pair is the class (None: all of it), the pairs that are drawn in turn, templates.
_TASKS: dict[str, tuple[tuple, int | None, tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    "shape": (SHAPES, 1, _in_turn(1), SCENE_TEMPLATES),
    "color": (COLOR_NAMES, 0, _in_turn(0), COLOR_TEMPLATES),
    "unseen_combination": (PAIRS, None, UNSEEN, SCENE_TEMPLATES),
}


def zero_shot_set(name: str) -> ZeroShotSet:
    """One of `TASKS`. Images of scenes are fresh: their stream of draws is not that of training.

    Raises:
        KeyError: for another name.
    """
    if name == "handwritten_digits":
        scans, labels = _digit_scans()
        return ZeroShotSet(DIGIT_NAMES, DIGIT_TEMPLATES, labels, scans.__getitem__, "test")
    classnames, part, pool, templates = _TASKS[name]
    pairs = [pool[k % len(pool)] for k in range(TASK_SIZE)]
    labels = np.array([classnames.index(pair if part is None else pair[part]) for pair in pairs], np.int64)

    def image(k: int) -> Pixels:
        rng = _rng_of_task(name, k)
        return draw(Scene((place_one(rng, *pairs[k]),), rng.pick(tuple(BACKGROUNDS))), rng)

    names = tuple(name if isinstance(name, str) else " ".join(name) for name in classnames)
    return ZeroShotSet(names, templates, labels, image, "fresh")


def thing_of_task(name: str, k: int) -> Thing:
    """The shape in image k of a task of scenes, as `zero_shot_set` draws it."""
    pool = _TASKS[name][2]
    return place_one(_rng_of_task(name, k), *pool[k % len(pool)])


def _rng_of_task(name: str, k: int) -> CounterRng:
    return CounterRng(k, 1 + TASKS.index(name))


@lru_cache(maxsize=1)
def _digit_scans() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's scans of handwritten digits: uint8 [1797, 8, 8, 3] and int64 [1797].

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998 (its test part).
    """
    from sklearn.datasets import load_digits  # not needed for training

    digits = load_digits()
    grey = (digits.images * (255 / 16)).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=3), digits.target.astype(np.int64)
