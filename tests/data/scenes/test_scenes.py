"""The embedded data: a sample depends on its integer alone, captions are true, some pairs are never drawn."""

import re
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

from clip_lightning.data.order.counter_rng import CounterRng
from clip_lightning.data.scenes import scenes
from clip_lightning.data.scenes.captions import DIGIT_NAMES
from clip_lightning.data.scenes.strokes import FORMS, ink, write_digit

LAYOUT = scenes.Scenes()
IDS = range(0, LAYOUT.num_samples, 53)  # 19,785 of them, from every shard
SAID = re.compile(
    rf"\b({'|'.join(scenes.COLORS)}) ({'|'.join(scenes.SHAPES)})\b"
    rf"|\b({'|'.join(scenes.SHAPES)})(?: is| that is|,| in) ({'|'.join(scenes.COLORS)})\b"
)


def scene(k: int) -> scenes.Scene:
    return scenes.compose(CounterRng(k, scenes.TRAINING))


def pairs_said(caption: str) -> set[tuple[str, str]]:
    found = SAID.findall(caption)
    return {(before, shape) if before else (after, shape_first) for before, shape, shape_first, after in found}


DIGEST = """
import hashlib
from clip_lightning.data.scenes.scenes import Scenes
samples = [Scenes().read(k) for k in order]
digest = hashlib.sha256(b"".join(s.image.tobytes() + s.captions[0].encode() for s in samples)).hexdigest()
"""


@pytest.mark.slow
def test_a_sample_depends_on_its_integer_only() -> None:
    code = f"order = range(99, -1, -1){DIGEST}print(digest)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here: dict[str, Any] = {"order": [*range(500), *range(99, -1, -1)]}
    exec(DIGEST.replace("in order]", "in order][-100:]"), here)
    assert done.stdout.strip() == here["digest"]


@pytest.mark.slow
def test_images_are_new_for_every_integer() -> None:
    assert len({LAYOUT.read(k).image.tobytes() for k in range(2_000)}) == 2_000  # type: ignore[union-attr]


def test_the_layout_counts_its_shards() -> None:
    assert LAYOUT.shard_sizes.sum() == LAYOUT.num_samples
    sample = LAYOUT.read(LAYOUT.num_samples - 1)
    assert isinstance(sample.image, np.ndarray)
    assert (sample.image.shape, sample.image.dtype) == ((32, 32, 3), np.uint8)


def test_sixteen_pairs_are_unseen_two_of_every_color_and_shape() -> None:
    assert len(scenes.PAIRS) == 64
    assert Counter(color for color, _ in scenes.UNSEEN) == dict.fromkeys(scenes.COLORS, 2)
    assert Counter(shape for _, shape in scenes.UNSEEN) == dict.fromkeys(scenes.SHAPES, 2)


@pytest.mark.slow
def test_unseen_pairs_are_neither_drawn_nor_written_in_training() -> None:
    drawn = Counter((thing.color, thing.shape) for k in IDS for thing in scene(k).things)
    assert set(drawn) == set(scenes.SEEN)
    said = Counter(pair for k in IDS for pair in pairs_said(LAYOUT.captions(k)[0]))
    assert set(said) == set(scenes.SEEN)


@pytest.mark.slow
def test_captions_mention_only_what_is_drawn() -> None:
    for k in IDS:
        there, caption = scene(k), LAYOUT.captions(k)[0]
        assert pairs_said(caption) <= {(thing.color, thing.shape) for thing in there.things}, caption
        words = set(re.findall(r"[a-z]+", caption))
        colors = {thing.color for thing in there.things} | {there.ink}
        assert words & set(scenes.COLORS) <= colors, caption
        assert words & set(scenes.SHAPES) <= {thing.shape for thing in there.things}, caption
        digits = words & (set(DIGIT_NAMES) - {"one", "two"})  # "one blue star" and "two shapes" are no digits
        assert digits <= ({DIGIT_NAMES[there.digit]} if there.digit is not None else set()), caption


def test_captions_are_the_same_with_and_without_the_image() -> None:
    for k in range(300):
        assert LAYOUT.read(k).captions == LAYOUT.captions(k)


@pytest.mark.slow
def test_places_in_captions_are_where_things_are() -> None:
    for k in IDS:
        for thing in scene(k).things:
            side = scenes.PLACES[thing.place]
            away = thing.x - scenes.SIZE / 2, thing.y - scenes.SIZE / 2
            assert all(s == 0 or s * a >= 0 for s, a in zip(side, away, strict=True)), thing
        if len(scene(k).things) == 2:
            first, second = scene(k).things
            assert first.y < second.y if scene(k).stacked else first.x < second.x


@pytest.mark.parametrize("color", scenes.COLORS)
def test_a_shape_has_the_color_of_its_caption(color: str) -> None:
    low, high = scenes.COLORS[color][:2]
    for shape in scenes.SHAPES:
        rng = CounterRng(7, 99)
        thing = scenes.place_one(rng, color, shape)
        picture = scenes.draw(scenes.Scene((thing,), "gray"), rng).astype(np.float64) / 255
        largest, smallest = picture.max(2), picture.min(2)
        red, green, blue = np.moveaxis(picture, 2, 0)
        spread = np.maximum(largest - smallest, 1e-9)
        hue = np.select(
            [largest == red, largest == green],
            [(green - blue) / spread, 2 + (blue - red) / spread],
            4 + (red - green) / spread,
        )
        vivid = (largest - smallest) > 0.5 * (largest - smallest).max()
        turned = (hue[vivid] / 6 - (low + high) / 2 + 0.5) % 1 - 0.5
        assert abs(np.median(turned)) < (high - low) / 2 + 0.01, (color, shape)


def test_every_form_of_every_digit_leaves_ink_of_its_own() -> None:
    for digit, forms in enumerate(FORMS):
        assert len(forms) >= 3
        drawn = {
            ink([line * 20 + 16 for line in write_digit(digit, CounterRng(k, 5))], 32, 2.5).tobytes() for k in range(20)
        }
        assert len(drawn) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shape", "color", "unseen_combination"])
def test_tasks_of_scenes_are_balanced_labelled_and_fresh(name: str) -> None:
    task = scenes.zero_shot_set(name)
    classes = {"shape": scenes.SHAPES, "color": tuple(scenes.COLORS)}
    assert task.classnames == classes.get(name, tuple(" ".join(pair) for pair in scenes.PAIRS))
    counts = np.bincount(task.labels, minlength=len(task.classnames))
    asked = [k for k, (color, shape) in enumerate(scenes.PAIRS) if name in classes or (color, shape) in scenes.UNSEEN]
    assert set(counts[: len(task.classnames)][asked[: len(task.classnames)]]) == {
        len(task.labels) // np.sum(counts > 0)
    }
    training = {LAYOUT.read(k).image.tobytes() for k in range(1_000)}  # type: ignore[union-attr]
    images = {task.image(k).tobytes() for k in range(200)}
    assert len(images) == 200
    assert not images & training
    assert (task.image(3) == task.image(3)).all()


def test_unseen_combination_scores_the_unseen_pairs_among_all() -> None:
    task = scenes.zero_shot_set("unseen_combination")
    assert {tuple(task.classnames[label].split()) for label in task.labels} == set(scenes.UNSEEN)


def test_handwritten_digits_are_the_1797_real_scans() -> None:
    task = scenes.zero_shot_set("handwritten_digits")
    assert (len(task.labels), task.image(0).shape, task.image(0).max()) == (1_797, (8, 8, 3), 239)
    assert [task.classnames[label] for label in task.labels[:10]] == list(DIGIT_NAMES)


def test_a_task_of_another_name_is_an_error() -> None:
    assert set(scenes.TASKS) == {"shape", "color", "unseen_combination", "handwritten_digits"}
    with pytest.raises(KeyError):
        scenes.zero_shot_set("size")
