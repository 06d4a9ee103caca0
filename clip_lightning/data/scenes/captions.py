"""Captions of a scene, as people would write them: many forms, some complete, some vague, some noisy.

A caption never claims what is not in the picture, but for the unrelated words of noisy ones; a colour is
directly before a shape, or attributed to it, only where that pair is drawn.
"""

import re

from clip_lightning.data.order.counter_rng import CounterRng
from clip_lightning.data.scenes.scene import Scene, Thing

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ONE = (
    "{}",
    "a {}",
    "a {}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "an image of a {}",
    "one {}",
    "there is a {}",
    "this is a {}",
    "look at this {}",
    "a {} in the {place}",
    "a {} at the {place}",
    "{place}: a {}",
    "a {} on a {background} background",
    "a {} in front of a {background} wall",
)
COLOR_ONLY = ("something {}", "a {} shape", "a {} thing", "it is {}", "a photo of something {}", "{}")
SHAPE_ONLY = ("a {}", "some kind of {}", "a photo of a {}", "a {} of some color", "{}")
SAID_OF = ("the {shape} is {color}", "a {shape} that is {color}", "a {shape}, {color}", "{shape} in {color}")
NOTHING = ("a picture", "shapes", "a shape", "some object", "untitled", "an image without a name")
TWO = (
    "a {} and a {}",
    "a {} and a {}",
    "{} and {}",
    "a {} next to a {}",
    "two shapes: a {} and a {}",
    "a {} with a {}",
)
BESIDE = ("a {} left of a {}", "a {} to the left of a {}", "on the left a {}, on the right a {}")
ABOVE = ("a {} above a {}", "a {} over a {}", "at the top a {}, at the bottom a {}")
DIGIT = (
    "{}",
    "the digit {}",
    "the digit {}",
    "a handwritten {}",
    "a handwritten {}",
    "the number {}",
    "the number {}",
    "a {} written by hand",
    "someone wrote a {}",
    "a photo of the number {}",
    "a scan of the digit {}",
    "a picture of a {}",
    "handwritten digit {}",
)
DIGIT_COLOR = ("a {color} {}", "the digit {} in {color}", "a {} written in {color}", "a {color} handwritten {}")
DIGIT_VAGUE = ("a digit", "a handwritten number", "some number", "handwriting")
BEFORE_VOWEL = re.compile(r"\ba (?=orange|eight|8)")
NOISE = ("img {}", "dsc {}", "free download", "stock photo", "photo by anna", "via phone", "no {}", "my homework")


def thing_words(thing: Thing, rng: CounterRng) -> str:
    """The words for a shape: always its colour and shape, often its size, sometimes its texture."""
    words = [thing.color, thing.shape]
    if thing.texture != "plain" and rng.chance(0.4):
        words.insert(0, thing.texture)
    if thing.size != "medium" and rng.chance(0.4):
        words.insert(0, thing.size)
    return " ".join(words)


def describe(scene: Scene, rng: CounterRng) -> str:
    """One caption of the scene."""
    if scene.digit is not None:
        caption = _describe_digit(scene, rng)
    elif len(scene.things) == 2:
        caption = _describe_two(scene, rng)
    else:
        caption = _describe_one(scene, rng)
    caption = BEFORE_VOWEL.sub("an ", caption)
    if rng.chance(0.04):
        caption = _mistype(caption, rng)
    if rng.chance(0.06):
        noise = rng.pick(NOISE).format(rng.index(10_000))
        caption = f"{caption} {noise}" if rng.chance(0.5) else f"{noise} {caption}"
    return caption


def _describe_one(scene: Scene, rng: CounterRng) -> str:
    (thing,) = scene.things
    form = rng.between(0, 1)
    if form < 0.78:
        words = thing_words(thing, rng)
        return rng.pick(ONE).format(words, place=thing.place, background=scene.background)
    if form < 0.84:
        return rng.pick(SAID_OF).format(shape=thing.shape, color=thing.color)
    if form < 0.90:
        return rng.pick(SHAPE_ONLY).format(thing.shape)
    if form < 0.98:
        return rng.pick(COLOR_ONLY).format(thing.color)
    return rng.pick(NOTHING)


def _describe_two(scene: Scene, rng: CounterRng) -> str:
    first, second = scene.things  # the left or the upper one is first
    words = thing_words(first, rng), thing_words(second, rng)
    form = rng.between(0, 1)
    if form < 0.5:
        return rng.pick(TWO).format(*(words if rng.chance(0.5) else words[::-1]))
    if form < 0.95:
        return rng.pick(ABOVE if scene.stacked else BESIDE).format(*words)
    return rng.pick(("two shapes", "two things", *NOTHING))


def _describe_digit(scene: Scene, rng: CounterRng) -> str:
    assert scene.digit is not None
    name = DIGIT_NAMES[scene.digit] if rng.chance(0.6) else str(scene.digit)
    form = rng.between(0, 1)
    if form < 0.25 and scene.ink is not None:
        return rng.pick(DIGIT_COLOR).format(name, color=scene.ink)
    if form < 0.97:
        return rng.pick(DIGIT).format(name)
    return rng.pick(DIGIT_VAGUE)


def _mistype(caption: str, rng: CounterRng) -> str:
    """The caption with one letter left out, doubled, or changed places with the next."""
    at = rng.index(max(len(caption) - 1, 1))
    slip = rng.index(3)
    before, letter, after = caption[:at], caption[at], caption[at + 1 :]
    return before + ("" if slip == 0 else letter * 2 if slip == 1 else after[:1] + letter) + after[slip == 2 :]
