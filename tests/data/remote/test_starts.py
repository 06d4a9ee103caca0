"""Fresh processes that read remote data or parquet through a cold cache: none hangs, and none outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_lightning.data.loader import TrainingLoader
from clip_lightning.errors import DataError
from tests.data.remote.test_cache import MakeModule
from tests.support.small_data import jpeg, pairs, write_tar

PROGRAM = Path(__file__).with_name("start_program.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four tars of 16 pairs, and a parquet file of four row groups of 64 rows."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(4):
        write_tar(folder / "tar" / f"{number}.tar", pairs(number * 16, 16))
    (folder / "parquet").mkdir()
    table = pa.table({"jpg": [jpeg(1, 320, 240)] * 256, "txt": ["a caption"] * 256})
    pq.write_table(table, folder / "parquet/t.parquet", row_group_size=64, use_dictionary=False)
    return {"tar": folder / "tar", "parquet": folder / "parquet"}


def start(root: Path, data: Path, cache: Path, store: str, workers: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, PROGRAM, str(data), str(cache), store, str(workers), "6", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)})


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    printed, _ = process.communicate(timeout=180)
    return dict(json.loads(printed))


@pytest.mark.ci
@pytest.mark.parametrize(("layout", "store"), [("parquet", "local"), ("tar", "slow"), ("tar", "memory")])
def test_two_jobs_at_once_read_the_same_pairs_through_a_cold_cache(
    root: Path, data: dict[str, Path], layout: str, store: str, tmp_path: Path
) -> None:
    jobs = [start(root, data[layout], tmp_path, store, workers) for workers in (1, 2)]
    first, second = (result(job) for job in jobs)
    assert first["ids"] == second["ids"]
    assert len(first["ids"]) == 96
    assert not list((tmp_path / "shards").glob("*.part"))


@pytest.mark.ci
def test_loader_processes_end_with_a_parent_that_is_killed(root: Path, data: dict[str, Path], tmp_path: Path) -> None:
    job = start(root, data["parquet"], tmp_path, "local", 2, "--hold")
    assert job.stdout is not None
    job.stdout.readline()
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    assert len(children) >= 3  # two loader processes and the one that fetches ahead
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    end = time.monotonic() + 10
    while alive := [pid for pid in children if is_running(pid)]:
        assert time.monotonic() < end, alive
        time.sleep(0.05)


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_loader_that_gets_no_batch_names_the_shard(
    module: MakeModule, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_lightning.data.loader.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("clip_lightning.data.loader.PATIENCE_SECONDS", 0.3)
    made = module(shards, workers=1)
    monkeypatch.setattr(type(made.layout), "read_many", lambda *_: time.sleep(60))
    loader = made.train_dataloader()
    assert isinstance(loader, TrainingLoader)
    with pytest.raises(DataError, match=r"have made no batch for 0 s.*the batch needs .*\.tar"):
        next(iter(loader))
