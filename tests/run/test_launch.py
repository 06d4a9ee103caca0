"""Ranks that a launcher starts all at once wait for rank 0; the tasks here get what srun would set."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from clip_lightning.records import read_records
from tests.slurm.test_tasks import STEP

pytestmark = pytest.mark.ci

TWO = ["cluster=ddp", "cluster.accelerator=cpu", "cluster.nodes=2", "cluster.devices=1", "cluster.threads=1"]
PATIENCE = 300  # seconds for any process to end, on a busy computer too
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def num_connected(port: int) -> int:
    """Number of established connections to a local port."""
    lines = Path("/proc/net/tcp").read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
    fields = [line.split() for line in lines]
    return sum(field[1].endswith(f":{port:04X}") and field[3] == "01" for field in fields)


@pytest.fixture
def start(root: Path, free_port: int) -> Iterator[Start]:
    """Starts train.py, or another entry file, as one task of two on two nodes."""
    begun = []

    def start(rank: int, *argv: str, entry: str = "train.py") -> subprocess.Popen[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        kept |= STEP | {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURMD_NODENAME": f"n{rank + 1}"}
        kept |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, entry, *argv, *TWO]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        begun.append(subprocess.Popen(command, cwd=root, env=kept, text=True, **pipes))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_a_rank_that_starts_first_writes_nothing_before_rank_0_is_ready(
    start: Start, tmp_path: Path, small: list[str]
) -> None:
    for k in range(2):  # the second moves the first aside
        argv = [f"runs={tmp_path / 'runs'}", *small, "fresh=true"]
        before = sorted(tmp_path.rglob("*"))
        ranks = [start(1, *argv)]
        time.sleep(5)
        assert ranks[0].poll() is None, ranks[0].communicate()
        assert sorted(tmp_path.rglob("*")) == before
        ranks.insert(0, start(0, *argv))
        outputs = [rank.communicate(timeout=PATIENCE) for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], outputs
        assert len(list((tmp_path / "runs").glob("*-*/metrics.jsonl"))) == k + 1
        assert [text.strip() for text in outputs[1]] == ["", ""]


def test_where_rank_0_finds_nothing_to_train_the_others_exit_silently(
    start: Start, tmp_path: Path, small: list[str]
) -> None:
    (tmp_path / "file").write_text("no directory")
    ranks = [start(rank, f"runs={tmp_path / 'file' / 'runs'}", *small) for rank in (1, 0)]
    (other, first) = (rank.communicate(timeout=PATIENCE) for rank in ranks)
    assert "cannot be made" in first[1]
    assert [rank.returncode for rank in ranks] == [0, 2]
    assert [text.strip() for text in other] == ["", ""]


def test_a_rank_that_loses_rank_0_reports_it(start: Start, tmp_path: Path, small: list[str], free_port: int) -> None:
    server = dist.TCPStore("127.0.0.1", free_port, is_master=True, wait_for_workers=False)
    rank = start(1, f"runs={tmp_path / 'runs'}", *small)
    while num_connected(free_port) < 2:  # the server's own is one
        assert rank.poll() is None, rank.communicate()
        time.sleep(0.05)
    time.sleep(2)  # a store that closes between the connection and torch's first message is connected to again
    del server
    outputs = rank.communicate(timeout=PATIENCE)
    assert rank.returncode == 1
    # c10d itself prints before it that the connection was closed.
    sentence = "rank 0 was lost while it prepared the run; its own output gives the reason"
    assert outputs[1].splitlines()[-1] == f"n2: {sentence}"


def test_a_sweep_that_srun_starts_in_several_tasks_is_refused_by_one_of_them(
    start: Start, tmp_path: Path, small: list[str]
) -> None:
    ranks = [start(rank, "-m", "compute.seed=0,1", f"runs={tmp_path / 'runs'}", *small) for rank in (0, 1)]
    outputs = [rank.communicate(timeout=PATIENCE)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], outputs
    assert "a sweep starts its runs by itself" in outputs[0]
    assert outputs[1].strip() == ""
    assert not (tmp_path / "runs").exists()


def test_nodes_that_nothing_starts_are_reported_instead_of_waited_for(
    root: Path, tmp_path: Path, small: list[str]
) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    command = [sys.executable, "train.py", f"runs={tmp_path / 'runs'}", *small, *TWO]
    done = subprocess.run(command, cwd=root, env=kept, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert "cluster.nodes=2: nothing starts processes on other nodes from here" in done.stderr


def test_tasks_of_srun_evaluate_together(start: Start, runner: Any, tmp_path: Path) -> None:
    runner.train(tmp_path, "eval=default", "eval.tasks=[shape]", "eval.every=0 samples", "compute.duration=2 steps")
    run = tmp_path / "latest"
    tasks = [start(rank, f"run={run}", entry="evaluate.py") for rank in (1, 0)]
    for task in tasks:
        out, error = task.communicate(timeout=PATIENCE)
        assert task.returncode == 0, out + error
    found = [
        {record.what: record.value for record in read_records(run / name) if record.task == "shape"}
        for name in ("metrics.jsonl", "evaluation.jsonl")
    ]
    assert found[0] == found[1] != {}
    assert len(read_records(run / "evaluation.jsonl")) == 4
