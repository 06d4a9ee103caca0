"""The tasks of a config: suites on disk, what is missing, and tasks that share images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_lightning.config.schema import EvalConfig, VisionConfig
from clip_lightning.errors import UserError
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.suite import SUITES
from clip_lightning.evaluation.tasks import ZeroShotTask
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
from clip_lightning.run import evaluators
from clip_lightning.run.evaluators import FoundTasks, find_tasks, task_evaluators
from tests.support.small_folder import write_folder


def make_task(name: str, **changes: Any) -> ZeroShotTask:
    images = np.zeros((6, 8, 8, 3), dtype=np.uint8)
    return ZeroShotTask(name, ["a", "b"], ["{c}"], np.arange(6) % 2, lambda k: images[k], **changes)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The data sets that exist, on a disk of which the test decides."""
    names = ["cifar10", "dtd"]

    def build(wanted: list[str], folders: list[str] = (), root: object = None) -> list[ZeroShotTask]:  # type: ignore[assignment]
        if lacking := [name for name in wanted if name not in names]:
            raise UserError(*(f"{name} is not below eval.root={root}: get it." for name in lacking))
        return [make_task(name) for name in wanted]

    monkeypatch.setattr(evaluators, "build_tasks", build)
    return names


def test_the_data_sets_that_are_there_are_measured_and_the_others_listed_in_one_line(on_disk: list[str]) -> None:
    found = find_tasks(EvalConfig(name="quick", suites={"quick": True, "vtab": True, "paper36": False}, root="/data"))
    assert [task.name for task in found.zero_shot] == ["cifar10", "dtd"]
    lacking = [name for name in dict.fromkeys(SUITES["quick"] + SUITES["vtab"]) if name not in on_disk]
    assert list(found.missing) == lacking
    (line,) = found.warnings
    assert line.startswith(f"warning: {len(lacking)} data sets of the suite are not measured, and 2 tasks are: ")
    assert all(name in line for name in lacking)


def test_a_named_task_that_is_missing_is_an_error(on_disk: list[str]) -> None:
    with pytest.raises(UserError, match="pcam is not below"):
        find_tasks(EvalConfig(name="quick", suites={"quick": True}, tasks=["pcam"], root="/data"))


def test_a_suite_without_any_data_set_is_an_error(on_disk: list[str]) -> None:
    on_disk.clear()
    with pytest.raises(
        UserError, match=r"eval=quick: none of its data sets is here \(eval.root=/data\); the first: cif"
    ):
        find_tasks(EvalConfig(name="quick", suites={"quick": True}, root="/data"))
    with pytest.raises(UserError, match=r"eval\.suites\.paper63: there is no such suite; there are paper36"):
        find_tasks(EvalConfig(name="quick", suites={"paper63": True}))


def test_folders_are_tasks_beside_a_suite(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "colours")
    found = find_tasks(EvalConfig(name="none", folders=[str(folder)], tasks=["shape"]))
    assert [task.name for task in found.zero_shot] == ["shape", "colours"]
    assert found
    assert not FoundTasks()


def test_tasks_on_the_same_images_share_an_evaluator() -> None:
    tasks = [make_task("a", images_id="x"), make_task("b"), make_task("c", images_id="x"), make_task("d")]
    lines: list[str] = []
    evaluation, vision = EvalConfig(name="x"), VisionConfig(name="x", image_size=8, resize="squash")
    found = task_evaluators(FoundTasks(tasks), evaluation, vision, "fp32", lines.append, MemoryBudget())
    assert [one.name for one in found if isinstance(one, ZeroShotEvaluator)] == ["a, c", "b", "d"]
    assert isinstance(found[0], ZeroShotEvaluator)
    assert found[0].tasks[0].resize.mode == "squash"
    assert lines == []


def test_tasks_that_not_every_rank_has_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluators, "exchange", lambda mine: [mine, [("b", 6), ("d", 5)]])
    lines: list[str] = []
    tasks = FoundTasks([make_task("a"), make_task("b"), make_task("d")])
    found = task_evaluators(
        tasks, EvalConfig(name="x"), VisionConfig(name="x", image_size=8), "fp32", lines.append, MemoryBudget()
    )
    assert [one.name for one in found if isinstance(one, ZeroShotEvaluator)] == ["b"]
    assert lines[0] == "warning: not every node has the same images of a, d, which are not measured"
