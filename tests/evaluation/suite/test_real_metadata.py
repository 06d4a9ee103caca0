"""The data sets of the paper from their official metadata, and evaluated: `pytest -s` prints the table of them.

Images are drawn under the official names, since few real ones are beside this checkout. The two sets whose official
files are HDF5 (which need h5py, see test_layouts.py) are in another of their layouts here.
"""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_lightning.evaluation.suite import PAPER36, TABLE11_ONLY
from clip_lightning.evaluation.suite.loaders.annotations import _closest
from clip_lightning.evaluation.suite.loaders.found import same
from clip_lightning.evaluation.suite.names import timm_list
from clip_lightning.evaluation.suite.open import state_of
from clip_lightning.evaluation.tasks import ZeroShotTask, build_task
from tests.evaluation.suite.evaluating import measured, sample
from tests.evaluation.suite.real_layouts import BUILDERS, EVALSETS, lines

TABLE = Path(__file__).parents[4] / "shared" / "reference" / "suite36.csv"
NUMBERS = dict(zip((*PAPER36, *TABLE11_ONLY), range(1, 39), strict=True))
# Images of the whole test split, where the official metadata lists it or the layout's documentation says how many.
IMAGES = {
    "food101": 25_250,
    "sun397": 19_850,
    "eurosat": 27_000,
    "cifar10": 10_000,
    "cifar100": 10_000,
    "fer2013": 3_589,
    "ucf101": 3_783,
    "caltech101": 9_144,
    "oxford_pets": 3_669,
    "imagenet_v2": 10_000,
    "fgvc_aircraft": 3_333,
    "country211": 21_100,
    "resisc45": 31_500,
    "stanford_cars": 8_041,
    "kinetics700": 33_909,
    "flowers102": 6_149,
    "imagenet": 50_000,
    "birdsnap": 2_443,
    "ayahoo": 2_237,
    "dtd": 1_880,
    "voc2007": 4_952,
    "mnist": 10_000,
    "imagenet_vid": 22_179,
    "youtube_bb": 2_169,  # anchors with a good annotation
    "hateful_memes": 500,
    "rendered_sst2": 1_821,
    "gtsrb": 12_630,
    "stl10": 8_000,
    "kitti_distance": 711,
}
EVALUATED = 48  # images of each set that go through a model
ROWS: list[tuple[str, ...]] = []


def check_imagenet(task: ZeroShotTask) -> None:
    """The labels of the devkit's own order are those that TFDS has by synset."""
    by_image = [line.split()[-1] for line in lines("imagenet/tfds/validation_labels.txt")]
    keys = timm_list("imagenet_synsets.txt")
    assert [keys[label] for label in task.labels] == by_image


def check_objectnet(task: ZeroShotTask) -> None:
    """Each class is the classes of ImageNet that the mapping names."""
    static = build_task("objectnet_static", ROOTS["objectnet"])
    texts = json.loads((EVALSETS / "objectnet/testbed/imagenet_to_labels.json").read_text(encoding="utf-8"))
    official = json.loads(
        (EVALSETS / "objectnet/objectnet-1.0/mappings/objectnet_to_imagenet_1k.json").read_text(encoding="utf-8")
    )
    assert static.allowed is not None
    for column, name in zip(static.allowed.T, task.classnames, strict=True):
        assert {texts[str(k)] for k in np.flatnonzero(column)} == set(official[name].split("; "))


def check_flowers(task: ZeroShotTask) -> None:
    """The names are Udacity's but for a few spellings."""
    udacity = json.loads((EVALSETS / "flowers102/udacity_cat_to_name.json").read_text(encoding="utf-8"))
    differ = [k for k, name in enumerate(task.classnames) if same(name) != same(udacity[str(k + 1)])]
    assert len(differ) <= 8


CHECKS: dict[str, Callable[[ZeroShotTask], object]] = {
    "imagenet": check_imagenet,
    "objectnet": check_objectnet,
    "flowers102": check_flowers,
    "sun397": lambda task: np.testing.assert_array_equal(np.bincount(task.labels), [50] * 397),
    "food101": lambda task: np.testing.assert_array_equal(np.bincount(task.labels), [250] * 101),
    "imagenet_v2": lambda task: np.testing.assert_array_equal(np.bincount(task.labels), [10] * 1000),
    "imagenet_vid": lambda task: np.testing.assert_array_equal(np.unique(task.groups), range(1109)),
    "youtube_bb": lambda task: np.testing.assert_array_equal(np.unique(task.groups), range(2169)),
    "mnist": lambda task: np.testing.assert_array_equal(task.labels[:5], [7, 2, 1, 0, 4]),
}
ROOTS: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    if not EVALSETS.is_dir():
        pytest.skip("the official metadata is not beside this checkout")
    yield
    header = ("set", "layout", "split", "metric", "value", "chance", "classes", "suite36", "images", "suite36", "are")
    widths = [max(len(row[k]) for row in (header, *ROWS)) for k in range(len(header))]
    for row in (header, *ROWS):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def published(name: str) -> tuple[str, str]:
    """Classes and test images of suite36.csv."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if int(row["n"]) == NUMBERS[name])
    return row["fig21_classes"], row["table9_test"] or "-"


def test_all_38_have_a_builder() -> None:
    assert set(BUILDERS) == {*PAPER36, *TABLE11_ONLY}


@pytest.mark.parametrize(("image", "label"), [("000000", 3), ("000001", 2), ("000002", 2)])
def test_the_closest_vehicle_of_real_labels(image: str, label: int) -> None:
    assert _closest(EVALSETS / "kitti" / "training" / "label_2" / f"{image}.txt") == label


@pytest.mark.ci
@pytest.mark.parametrize("name", BUILDERS)
def test_a_set_of_the_paper_is_evaluated_from_its_official_metadata(
    name: str, tmp_path: Path, model: Any, tokenizer: Any
) -> None:
    images_are = BUILDERS[name](tmp_path)
    task = build_task(name, tmp_path)
    classes, size = published(name) if TABLE.is_file() else ("-", "-")
    if TABLE.is_file():
        assert len(task.classnames) == int(classes)
    if name in IMAGES:
        assert task.num_samples == IMAGES[name]
    ROOTS[name] = tmp_path
    CHECKS.get(name, lambda _: None)(task)
    state = state_of(name, tmp_path)
    assert (state.status, state.images) == ("ready", task.num_samples)
    few = sample(task, EVALUATED)
    for k in range(few.num_samples):
        few.image(k, 8)
    record = measured(few, model, tokenizer)
    value = "-" if record is None else f"{record.value:.4f}"
    chance = "-" if record is None or record.chance is None else f"{record.chance:.4f}"
    num_classes = str(len(task.classnames))
    row = (
        name,
        state.loader,
        task.split,
        task.metric,
        value,
        chance,
        num_classes,
        classes,
        str(task.num_samples),
        size,
    )
    ROWS.append((*row, images_are))
    shutil.rmtree(tmp_path)
