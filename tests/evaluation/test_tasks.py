"""Tasks: the registry's names, folders in CLIP_benchmark's layout, and one sentence for each fault."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.prompts import fill_all
from clip_lightning.evaluation.tasks import BUILDERS, ZeroShotTask, build_task, build_tasks, folder_task
from tests.support.small_folder import encoded, write_folder, write_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "colours")


def test_a_folder_is_a_task_named_by_its_name(folder: Path) -> None:
    task = folder_task(folder)
    assert (task.name, task.num_samples, task.split) == ("colours", 5, "test")
    assert task.labels.tolist() == [0, 1, 2, 0, 1]
    for k in range(5):
        image = task.image(k, 4)
        assert image.shape == (3, 4, 4)
        assert (image.float() - 20 * k).abs().max() <= 3
    assert fill_all(task.templates, task.classnames)[:3] == ["a red {dark}.", "the red {dark}", "a green."]


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def shard(members: dict[str, bytes]) -> Callable[[Path], object]:
    return lambda folder: write_tar(folder / "test" / "1.tar", members)


TEMPLATES = "zeroshot_classification_templates.txt"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no classnames": (remove("classnames.txt"), r"classnames.txt is missing"),
    "no templates": (remove(TEMPLATES), r"templates.txt is missing"),
    "no nshards": (remove("test/nshards.txt"), r"nshards.txt is missing"),
    "no shards": (write("test/nshards.txt", "0"), r"announces 0 shards"),
    "nshards no number": (write("test/nshards.txt", "two"), r"must hold one number"),
    "shard missing": (remove("test/1.tar"), r"1.tar is missing; nshards.txt"),
    "empty classnames": (write("classnames.txt", "\n"), r"has no class names"),
    "blank class": (write("classnames.txt", "a\n\nb\n"), r"class 1 has no name"),
    "empty templates": (write(TEMPLATES, ""), r"has no templates"),
    "template without class": (write(TEMPLATES, "a {c}\na photo\n"), r"the template 'a photo' has no \{c\}"),
    "not UTF-8": (write("classnames.txt", b"a\n\xff\n"), r"not UTF-8 text \(byte 2\)"),
    "label outside": (shard({"9.png": encoded(1), "9.cls": b"3"}), r"image 3 has label 3, and labels go from 0 to 2"),
    "label no number": (shard({"9.png": encoded(1), "9.cls": b"cat"}), r"a label \(.cls\) is b'cat'"),
    "no label": (shard({"9.png": encoded(1)}), r"the sample 9 has a fault \(missing label\)"),
    "no image": (shard({"9.cls": b"1"}), r"the sample 9 has a fault \(missing image\)"),
    "no tar": (write("test/1.tar", b"\x1f\x8b" + b"?" * 2000), r"1.tar has a fault \(compressed shard"),
}


@pytest.mark.parametrize(("change", "sentence"), FAULTS.values(), ids=FAULTS.keys())
def test_a_wrong_folder_is_refused_in_one_sentence(
    folder: Path, change: Callable[[Path], object], sentence: str
) -> None:
    change(folder)
    with pytest.raises(DataError, match=sentence) as caught:
        folder_task(folder)
    assert all(problem.endswith(".") and "\n" not in problem for problem in caught.value.problems)


def test_a_cut_tar_is_refused(folder: Path) -> None:
    path = folder / "test" / "0.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"0\.tar has a fault \(truncated shard\)"):
        folder_task(folder)


def test_a_damaged_image_is_named(folder: Path) -> None:
    write_tar(folder / "test" / "1.tar", {"9.png": encoded(1)[:50], "9.cls": b"1"})
    task = folder_task(folder)
    with pytest.raises(DataError, match="task colours: image 3 is damaged"):
        task.image(3, 4)


def test_all_problems_of_all_tasks_come_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build_tasks(["shap"], [folder, folder, tmp_path / "nowhere"])
    assert len(caught.value.problems) == 3
    assert "did you mean shape?" in caught.value.problems[0]
    assert "is not a folder" in caught.value.problems[1]
    assert "2 tasks are called 'colours'" in caught.value.problems[2]


@pytest.mark.parametrize("name", BUILDERS)
def test_registered_tasks_give_images_of_the_requested_size(name: str) -> None:
    task = build_task(name)
    assert isinstance(task, ZeroShotTask)
    assert task.name == name
    assert set(task.labels) <= set(range(len(task.classnames)))
    assert task.image(0, 24).shape == task.image(task.num_samples - 1, 24).shape == (3, 24, 24)


def test_handwritten_digits_are_the_real_scans() -> None:
    task = build_task("handwritten_digits")
    assert (task.num_samples, len(task.classnames)) == (1797, 10)


def test_photographs_are_read_in_place(photographs: Path) -> None:
    task = folder_task(photographs / "wds_cifar10")
    assert (task.name, task.num_samples, len(task.classnames)) == ("wds_cifar10", 10_000, 10)
    assert np.bincount(task.labels).tolist() == [1000] * 10
    assert task.image(9_999, 32).shape == (3, 32, 32)
