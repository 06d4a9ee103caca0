"""A dry run prints what a run or a sweep costs, measures a step, refuses what cannot fit, and leaves nothing behind."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.runner import Runner

pytestmark = pytest.mark.slow

GPU = ["cluster.accelerator=gpu", "cluster.device_peak_tflops=989"]
has_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="plans for a GPU that is not here")
ROWS = ("parameters  ", "forward FLOPs  ", "training FLOPs  ", "steps  ", "memory: loss  ", "memory per process  ")


def gib(text: str) -> float:
    """The first amount of memory in a text."""
    number, unit = re.findall(r"([\d,.]+) (GiB|MiB)", text)[0]
    return float(number.replace(",", "")) / (1 if unit == "GiB" else 1024)


def row(printed: str, name: str) -> str:
    return next(line.removeprefix(name).strip() for line in printed.splitlines() if line.startswith(name))


def test_a_dry_run_counts_measures_a_step_and_writes_nothing(runner: Any, tmp_path: Path) -> None:
    printed = runner.train(tmp_path, "dry_run=true")
    assert row(printed, "state") == "dry run"
    assert [name for name in ROWS if f"\n{name}" not in printed] == []
    assert re.match(r"done: 16 made-up pairs in [\d.]+ s, [\d.]+ GFLOP/s on CPU", row(printed, "one step"))
    assert "; measured in that step" in row(printed, "time")
    assert re.match(r"2 checkpoints x [\d.]+ MiB", row(printed, "disk"))
    assert not list(tmp_path.iterdir())


def test_a_run_whose_step_does_not_fit_is_refused_before_it_writes(runner: Any, tmp_path: Path) -> None:
    printed = runner.train(tmp_path, "cluster.device_memory_gib=0.01", code=2)
    assert "a step needs about" in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def returning_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Its runs give freed memory back; glibc keeps it otherwise, and a process grows up to 1.8 times as much."""
    with closing(Runner(tmp_path_factory.mktemp("printed"), MALLOC_MMAP_THRESHOLD_="65536")) as runner:
        yield runner


@pytest.mark.ci
@pytest.mark.parametrize(
    "settings",
    [
        ["compute.precision=fp32"],
        ["compute.precision=bf16"],
        ["compute.precision=fp32", "cluster.micro_batch=256"],
        ["compute.precision=fp32", "cluster.activation_checkpointing=full"],
    ],
    ids=lambda settings: settings[-1],
)
def test_the_estimate_is_what_a_process_grows_by(returning_runner: Runner, tmp_path: Path, settings: list[str]) -> None:
    large = ["dry_run=true", "compute.global_batch=1024", "compute.duration=4 steps"]
    printed = returning_runner.train(tmp_path, *large, *settings)
    measured = gib(row(printed, "one step").rpartition(", ")[2])
    assert gib(row(printed, "memory per process")) == pytest.approx(measured, rel=0.2)


def test_micro_batches_are_tried_as_they_are(runner: Any, tmp_path: Path) -> None:
    printed = runner.train(tmp_path, "dry_run=true", "cluster.micro_batch=4")
    assert "8 made-up pairs in 2 micro-batches" in row(printed, "one step")


@has_no_gpu
def test_other_hardware_is_planned_for_and_what_does_not_fit_is_refused(runner: Any, tmp_path: Path) -> None:
    printed = runner.train(tmp_path, "dry_run=true", *GPU, "cluster.device_memory_gib=80", "cluster.assumed_mfu=0.4")
    assert "not tried: the device is not here" in row(printed, "one step")
    assert "stated: 40% MFU of 989 TFLOP/s" in row(printed, "time")
    printed = runner.train(tmp_path, "dry_run=true", *GPU, "cluster.device_memory_gib=0.015", code=2)
    assert re.search(
        r"^a step needs about .* and a device has 15.4 MiB; write .*cluster.micro_batch=\d+", printed, re.M
    )
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


def test_data_whose_number_is_published_need_not_be_there(runner: Any, tmp_path: Path) -> None:
    printed = runner.train(
        tmp_path, "dry_run=true", "model=tiny", "data=yfcc", "data.path=nowhere", "compute=cpu_minutes"
    )
    assert "an epoch has 14,829,396" in row(printed, "steps")
    assert row(printed, "data").startswith("not there (nowhere) and not tried")
    printed = runner.train(
        tmp_path, "dry_run=true", "model=tiny", "data=webdataset", "data.path=nowhere", "compute=cpu_minutes", code=2
    )
    assert "data.path=nowhere does not exist" in printed


@pytest.mark.ci
def test_a_sweeps_dry_run_is_one_table_with_its_sum(runner: Any, tmp_path: Path) -> None:
    printed = runner.train(tmp_path, "-m", "dry_run=true", "compute.duration=8 steps,16 steps", "model=tiny,tiny_half")
    lines = [re.split(r"  +", line) for line in printed.splitlines()]
    cells = [line for line in lines if line[-1].startswith("compute.duration=")]
    assert [line[2] for line in cells] == ["8", "8", "16", "16"]
    flops, hours = map(float, re.findall(r"^4 cells: (.*) FLOPs, (.*) device-hours$", printed, re.M)[0])
    assert sum(float(line[3]) for line in cells) == pytest.approx(flops, rel=1e-2)
    assert sum(float(line[5]) for line in cells) == pytest.approx(hours, rel=1e-2)
    assert printed.count("made-up pairs") == 2, "one step for each model"
    assert "hours: measured in that step" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.ci
@has_no_gpu
def test_the_scaling_grid_is_counted_without_data_or_gpu_and_refused_where_it_cannot_fit(
    runner: Any, tmp_path: Path
) -> None:
    grid = ["-m", "experiment=scaling_grid", f"runs={tmp_path}", "dry_run=true", "compute.duration=3B samples"]
    child = runner.start("train.py", *grid)
    assert child.wait() == 0, child.text()
    assert "hours: assumed: 30% MFU of 989.4 TFLOP/s (an H100)" in child.text()
    flops, hours = map(float, re.findall(r"^3 cells: (.*) FLOPs (\d+)", child.text().replace(",", ""), re.M)[0])
    assert hours == pytest.approx(flops / (0.3 * 989.4e12 * 3600), rel=1e-2)
    child = runner.start("train.py", *grid, "model=vit_b32,vit_l14", "cluster.micro_batch=256")
    assert child.wait() == 2, child.text()
    problems = [line for line in child.text().splitlines() if "a step needs about" in line]
    assert len(problems) == 1
    assert problems[0].startswith("model=vit_l14: ")
    assert "write cluster.micro_batch=128 or " in problems[0]
    assert "Traceback" not in child.text()
    assert not list(tmp_path.iterdir())
