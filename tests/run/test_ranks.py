"""One config on one process, under DDP and under FSDP2: one loss, one score, checkpoints that all of them read."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_lightning.records import read_records
from tests.run.test_resume import assert_bit_equal, final_state, losses

pytestmark = pytest.mark.slow
FSDP = ["cluster=fsdp", "cluster.accelerator=cpu", "compute.precision=fp32", "compute.ema_decay=0.9"]


def counts(runs: Path) -> dict[str, float]:
    """Zero-shot top-1 by task."""
    records = read_records(runs / "latest" / "metrics.jsonl")
    return {record.task: record.value for record in records if record.what == "acc1"}


@pytest.fixture(scope="module")
def uninterrupted(runner: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in shards on two ranks."""
    runs = tmp_path_factory.mktemp("uninterrupted")
    runner.train(runs, *FSDP, ranks=2)
    return runs


@pytest.mark.ci
def test_a_hundred_steps_have_one_loss_under_every_strategy(runner: Any, tmp_path: Path) -> None:
    settings = [
        "compute.duration=100 steps",
        "compute.precision=fp32",
        "compute.learning_rate=5e-4",
        "compute.global_batch=32",
        "cluster.checkpoint_every=0 samples",
        "eval=default",
        "eval.tasks=[shape]",
        "eval.every=0 samples",
    ]
    for name, number in {"laptop": 1, "ddp": 2, "fsdp": 2}.items():
        runner.train(tmp_path / name, *settings, f"cluster={name}", ranks=number)
    alone = losses(tmp_path / "laptop")
    assert len(alone) == 100
    for name in ("ddp", "fsdp"):
        assert losses(tmp_path / name) == pytest.approx(alone, rel=1e-5)
        assert counts(tmp_path / name) == counts(tmp_path / "laptop")


@pytest.mark.ci
def test_shards_resume_to_the_bit_and_are_evaluated(
    runner: Any, uninterrupted: Path, tmp_path: Path, small: list[str]
) -> None:
    child = runner.start("train.py", f"runs={tmp_path}", *small, *FSDP)
    child.wait_for("sample 64/")
    assert child.kill() == -signal.SIGKILL, child.text()
    assert "resumed at " in runner.train(tmp_path, *FSDP)
    assert_bit_equal(final_state(tmp_path), final_state(uninterrupted))
    assert losses(tmp_path) == losses(uninterrupted)
    for weights in ("raw", "ema"):
        asked = [f"run={tmp_path / 'latest'}", "eval.tasks=[shape]", "cluster.accelerator=cpu", f"weights={weights}"]
        child = runner.start("evaluate.py", *asked)
        assert child.wait() == 0, child.text()
        assert "shape" in child.text()


@pytest.mark.ci
def test_four_ranks_then_two_then_one_learn_what_one_does(runner: Any, tmp_path: Path, small: list[str]) -> None:
    """Shards in two groups, whole weights on every rank, shards, one process: each resumes from the one before."""
    settings, cut = ["compute.precision=fp32", "compute.duration=20 steps"], tmp_path / "cut"
    runner.train(tmp_path / "alone", *settings)
    for cluster in (
        "cluster=hsdp cluster.nodes=1 cluster.devices=4 cluster.shard_size=2 cluster.accelerator=cpu",
        "cluster=ddp cluster.devices=2",
        "cluster=fsdp cluster.accelerator=cpu",
    ):
        child = runner.start("train.py", f"runs={cut}", *small, *settings, *cluster.split())
        child.wait_for("| loss ")
        assert child.kill(signal.SIGTERM) == 128 + signal.SIGTERM, child.text()
    assert "resumed at " in runner.train(cut, *settings)
    assert losses(cut) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    assert json.loads((cut / "latest" / "summary.json").read_text())["restarts"] == 3


def worker(parent: int, rank: int) -> int:
    """The process of a rank that torchrun or Lightning started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_child = int(folder.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
            if is_child and f"LOCAL_RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except (OSError, ValueError):
            continue
    raise AssertionError(f"process {parent} has no rank {rank}")


@pytest.mark.ci
def test_the_death_of_a_rank_is_one_line_and_the_status(runner: Any, tmp_path: Path, small: list[str]) -> None:
    child = runner.start("train.py", f"runs={tmp_path}", *small, "cluster=ddp", "compute.duration=4000 steps")
    child.wait_for("sample 64/")
    os.kill(worker(child.pid, 1), signal.SIGKILL)
    assert child.wait() == 1, child.text()
    (line,) = (line for line in child.text().splitlines() if line.startswith("rank 1 was killed by SIGKILL"))
    assert "python train.py" in line
    assert "Traceback" not in child.text()
    status = json.loads((tmp_path / "latest" / "status.json").read_text())
    assert status["status"] == "failed"
    assert status["reason"].startswith("rank 1 was killed by SIGKILL")


@pytest.mark.ci
def test_torchrun_restarts_a_killed_rank_and_the_run_resumes(
    uninterrupted: Path, tmp_path: Path, root: Path, small: list[str]
) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    out = tmp_path / "out.txt"
    with out.open("w") as stream:
        process = subprocess.Popen(
            [*launch, "train.py", f"runs={tmp_path / 'runs'}", *small, *FSDP, "fresh=true"],
            cwd=root, stdout=stream, stderr=stream, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            end = time.monotonic() + 120
            while "sample 64/" not in out.read_text():
                assert time.monotonic() < end, out.read_text()
                time.sleep(0.01)
            os.kill(worker(process.pid, 1), signal.SIGKILL)
            assert process.wait(180) == 0, out.read_text()
        finally:
            process.terminate()
    assert "resumed at " in out.read_text()
    assert_bit_equal(final_state(tmp_path / "runs"), final_state(uninterrupted))
    assert losses(tmp_path / "runs") == losses(uninterrupted)
    summary = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    assert (summary["status"], summary["restarts"]) == ("finished", 1)
    assert not list((tmp_path / "runs").glob("*.old-*")), "fresh=true is obeyed once"
    again = subprocess.run(
        [*launch, "train.py", f"runs={tmp_path / 'runs'}", *small, *FSDP],
        cwd=root, text=True, capture_output=True, timeout=120, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "is finished" in again.stdout


def test_a_disk_that_takes_no_checkpoint_ends_a_run_before_its_first_step(
    runner: Any, tmp_path: Path, small: list[str]
) -> None:
    child = runner.start("train.py", f"runs={tmp_path}", *small, env={"LARGEST_FILE": "200000"})
    assert child.wait() == 2, child.text()
    assert "no checkpoint can be written there" in child.text()
    assert "| loss " not in child.text()
    (tmp_path / "latest" / "checkpoints").rmdir()
    (tmp_path / "latest" / "checkpoints").touch()
    runner.train(tmp_path, code=2)


def test_a_disk_that_fills_up_later_is_an_error_at_the_end_and_the_same_command_resumes(
    runner: Any, tmp_path: Path, small: list[str]
) -> None:
    filling = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    argv = [f"runs={tmp_path}", *small, "loss._target_=filling_disk.FillingDisk"]
    full = runner.start("train.py", *argv, env={**filling, "FULL_AT_STEP": "1"})
    assert full.wait() == 1, full.text()
    assert "no checkpoint at 32 samples" in full.text()
    assert "sample 128/128" in full.text()
    assert "could not be written" in full.text()
    again = runner.start("train.py", *argv, env=filling)
    assert again.wait() == 0, again.text()
    assert torch.is_tensor(final_state(tmp_path)["/weights/model.log_logit_scale"])


@pytest.mark.ci
def test_checkpoints_are_written_by_the_clock_of_rank_0(runner: Any, tmp_path: Path) -> None:
    """The flag is read one step after it was sent, so that each second step saves."""
    by_time = ["cluster.checkpoint_every=0 samples", "cluster.checkpoint_minutes=1e-6", "cluster.keep_last=9"]
    runner.train(tmp_path / "one", *by_time)
    runner.train(tmp_path / "two", *by_time, "cluster=ddp", "cluster.devices=2", "cluster.accelerator=cpu", ranks=2)
    saved = {name: list((tmp_path / name / "latest" / "checkpoints").iterdir()) for name in ("one", "two")}
    assert {name: sorted(int(path.name) // 16 for path in paths) for name, paths in saved.items()} == {
        "one": [1, 2, 3, 4, 5, 6, 7, 8],
        "two": [2, 4, 6, 8],
    }
