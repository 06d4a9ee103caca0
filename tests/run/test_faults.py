"""What breaks on one rank of many is named, spoils nothing, and the same command resumes."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from clip_lightning.reliability.checkpoint import CheckpointFolder
from clip_lightning.reliability.monitored_barrier import node_name
from tests.run.test_ranks import worker
from tests.run.test_resume import assert_bit_equal, final_state

pytestmark = pytest.mark.slow
DDP = ["cluster=ddp", "cluster.devices=2", "compute.precision=fp32"]


def status(runs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / "latest" / "status.json").read_text())
    return found


@pytest.mark.ci
def test_a_rank_that_does_not_answer_is_named_with_its_node(runner: Any, tmp_path: Path, small: list[str]) -> None:
    length = ["compute.duration=16 steps", "cluster.checkpoint_every=6 steps"]
    runner.train(tmp_path / "whole", *DDP, *length, ranks=2)
    runs = tmp_path / "cut"
    child = runner.start("train.py", f"runs={runs}", *small, *DDP, *length, "cluster.timeout_minutes=0.1")
    child.wait_for("sample 112/")
    process = worker(child.pid, 1)
    os.kill(process, signal.SIGSTOP)
    assert child.wait() == 1, child.text()
    assert f"rank 1 (node {node_name()}) of 2 has not answered after a collective failed" in child.text()
    assert "Traceback" not in child.text()
    assert status(runs)["status"] == "failed"
    assert "rank 1" in status(runs)["reason"]
    end = time.monotonic() + 10
    while Path(f"/proc/{process}").exists():
        assert time.monotonic() < end, "a process was left behind"
        time.sleep(0.1)
    assert "resumed at " in runner.train(runs, *DDP, *length)
    assert_bit_equal(final_state(runs), final_state(tmp_path / "whole"))


@pytest.mark.ci
def test_a_rank_whose_weights_differ_is_named_before_anything_is_saved(
    runner: Any, tmp_path: Path, small: list[str]
) -> None:
    tower = ["model.vision._target_=drifting.Tower", "model.vision.timm=null"]
    env = {"PYTHONPATH": str(Path(__file__).parent)}
    child = runner.start("train.py", f"runs={tmp_path}", *small, *DDP, *tower, env=env)
    assert child.wait() == 1, child.text()
    named = f"the weights of rank 1 (node {node_name()}) differ from rank 0's"
    assert f"{named} (first vision.backbone.layers.1.weight)" in child.text()
    assert "Traceback" not in child.text()
    assert status(tmp_path)["status"] == "failed"
    newest = CheckpointFolder(tmp_path / "latest" / "checkpoints", keep_last=9).newest()
    assert newest is not None
    assert newest.samples_seen == 64
