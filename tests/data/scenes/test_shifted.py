"""Shifted scenes: the same shapes and labels as the task `shape`, other pixels; labels of training scenes."""

import numpy as np
import pytest

from clip_lightning.data.scenes import scenes, shifted
from clip_lightning.evaluation.tasks import build_task


@pytest.mark.parametrize("name", shifted.SHIFTED_TASKS)
def test_a_shifted_set_has_the_labels_of_shape_and_other_pixels(name: str) -> None:
    task, reference = shifted.shifted_set(name), scenes.zero_shot_set("shape")
    assert task.classnames == reference.classnames
    assert (task.labels == reference.labels).all()
    images = [task.image(k) for k in range(20)]
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images)
    assert len({image.tobytes() for image in images}) == 20
    assert all((image != reference.image(k)).any() for k, image in enumerate(images))
    assert (task.image(7) == images[7]).all()
    assert build_task(name).num_samples == 960


def test_a_sketch_is_dark_lines_where_the_shape_ends() -> None:
    sketch = shifted.shifted_set("shape_sketch")
    for k in range(16):
        dark = (sketch.image(k)[:, :, 0] < 160).mean()
        assert 0.01 < dark < 0.3
        thing = scenes.thing_of_task("shape", k)
        if thing.shape in ("circle", "square", "diamond", "heart") and thing.size != "small":
            assert sketch.image(k)[int(thing.y), int(thing.x), 0] > 200  # nothing inside


def test_low_contrast_and_blur_keep_the_mean() -> None:
    reference = scenes.zero_shot_set("shape")
    for k in range(8):
        picture = reference.image(k).astype(float)
        fog = shifted.shifted_set("shape_low_contrast").image(k).astype(float)
        assert np.ptp(fog) <= 0.2 * np.ptp(picture) + 1
        assert shifted.shifted_set("shape_blurred").image(k).mean() == pytest.approx(picture.mean(), abs=4)


@pytest.mark.parametrize("part", ["shape", "color"])
def test_labels_of_training_scenes_are_in_their_captions(part: str) -> None:
    ids, labels = shifted.labelled_scenes(part, 30)
    names = {"shape": scenes.SHAPES, "color": scenes.COLOR_NAMES}[part]
    layout = scenes.Scenes()
    found = sum(names[label] in layout.captions(k)[0] for k, label in zip(ids, labels, strict=True))
    assert found >= 15  # other captions leave it out, use a synonym or are mistyped
    assert len(set(labels)) > 3
