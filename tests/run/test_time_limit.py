"""A run with a time limit saves and exits before it, and the same command resumes."""

import json
from pathlib import Path
from typing import Any

import pytest

from clip_lightning.config.schema import ClusterConfig
from clip_lightning.reliability.preemption import leave_after


def test_how_long_before_its_limit_a_run_stops() -> None:
    assert leave_after(ClusterConfig(name="c")) is None
    assert leave_after(ClusterConfig(name="c", time_limit_minutes=10)) == 540
    assert leave_after(ClusterConfig(name="c", time_limit_minutes=1440)) == 1440 * 60 - 300
    assert leave_after(ClusterConfig(name="c", time_limit_minutes=60, scheduler="slurm")) == 3300


@pytest.mark.ci
def test_a_run_saves_before_its_time_limit_and_resumes(runner: Any, tmp_path: Path, small: list[str]) -> None:
    argv = [f"runs={tmp_path}", *small, "loss._target_=slow_loss.SlowLoss", "cluster.checkpoint_every=0 samples"]
    tests = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    child = runner.start("train.py", *argv, "cluster.time_limit_minutes=0.2", env={**tests, "SECONDS_PER_STEP": "3"})
    assert child.wait() == 142, child.text()
    status = json.loads((tmp_path / "latest" / "status.json").read_text())
    assert status["status"] == "stopped"
    assert status["reason"] == "cluster.time_limit_minutes is near"
    assert 0 < status["samples_seen"] < 128
    child = runner.start("train.py", *argv, env=tests)
    assert child.wait() == 0, child.text()
    assert f"resumed at {status['samples_seen']} samples" in child.text()
