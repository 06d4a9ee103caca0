"""The images that a figure shows: by chance, of different classes, the same for every model."""

import numpy as np
import pytest

from clip_lightning.evaluation.predictions import example_indices
from clip_lightning.evaluation.tasks import ZeroShotTask


@pytest.mark.parametrize("num_images", [1, 3, 4, 9, 12, 40])
def test_no_class_is_shown_twice_while_another_is_not_shown(num_images: int) -> None:
    labels = np.array([2] * 30 + [0, 1, 3] * 3, dtype=np.int64)
    task = ZeroShotTask("birds", list("abcd"), ["a {c}"], labels, lambda k: b"")
    shown = example_indices(task, num_images)
    assert len(set(shown)) == len(shown) == min(num_images, len(labels))
    assert len(set(labels[shown[:4]])) == min(num_images, 4)
    assert shown == example_indices(task, num_images)
    assert shown == example_indices(task, 40)[:num_images]
