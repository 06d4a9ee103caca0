"""A sweep can be killed, fail in parts, and be repeated until every cell is done; its table shows its state."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clip_lightning.config import compose
from clip_lightning.config.grid import Cell
from clip_lightning.reliability.status import read_json
from clip_lightning.run.sweep.cells import run_cells
from clip_lightning.run.sweep.table import Row, SweepRecord, read, rows_of, table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SHORT = ["compute.duration=2 steps", "cluster.checkpoint_every=1 steps"]
# A user's loss that fails where an option says so, until a file fixes it.
LOSS = """
import os, torch
from clip_lightning.loss.softmax import SoftmaxLoss
from clip_lightning.config.schema import LossConfig

class Mine(torch.nn.Module):
    def __init__(self, fail, folder, **settings):
        super().__init__()
        self.fail, self.folder = fail, folder
        self.loss = SoftmaxLoss(chunk=256)
        with open(os.path.join(folder, "processes.txt"), "a") as stream:
            stream.write(f"{os.getpid()}\\n")

    def forward(self, *features):
        if self.fail and not os.path.exists(os.path.join(self.folder, "fixed")):
            if self.fail == 9:
                os.kill(os.getpid(), 9)
            raise ZeroDivisionError("no such luck")
        return self.loss(*features)
"""


def sweep_of(runs: Path) -> SweepRecord:
    (folder,) = (runs / "sweeps").iterdir()
    return read(folder)


def states(runs: Path) -> list[str]:
    record = sweep_of(runs)
    return [record.standing(cell)[0] for cell in record.cells]


def status(folder: Path, *flags: str) -> str:
    command = [sys.executable, "-m", "clip_lightning.run.sweep", "status", str(folder), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def untouched(run: Path) -> dict[str, tuple[int, int]]:
    """Every file of a directory with its size and the time of its last change."""
    paths = [path for path in sorted(run.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def until(holds: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.ci
@pytest.mark.parametrize("own", [None, "mine"])
def test_the_cells_of_a_sweep_are_one_group_in_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    if own:
        monkeypatch.setenv("WANDB_RUN_GROUP", own)
    argv = [f"runs={tmp_path}", "compute.seed=1"]
    seen = []

    def launch(task: Any) -> int:
        seen.append(os.environ["WANDB_RUN_GROUP"])
        return 0

    assert run_cells([Cell(["compute.seed=1"], argv, compose.load("train", argv))], argv, launch) == 0
    assert seen == [own or sweep_of(tmp_path).path.name]
    assert os.environ.get("WANDB_RUN_GROUP") == own


@pytest.mark.ci
def test_a_sweep_killed_half_way_and_repeated_runs_only_what_is_missing(
    runner: Any, tmp_path: Path, small: list[str]
) -> None:
    seeds = f"compute.seed={','.join(map(str, range(4)))}"
    child = runner.start("train.py", "-m", f"runs={tmp_path}", *small, *SHORT, seeds)

    def killed_a_cell() -> bool:
        if "failed" not in states(tmp_path):
            for cell in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(cell), signal.SIGKILL)
        return "failed" in states(tmp_path)

    until(lambda: [*tmp_path.glob("sweeps/*/sweep.json")] and states(tmp_path).count("finished") >= 1)
    until(killed_a_cell)
    until(lambda: states(tmp_path).count("finished") >= 2)
    assert child.kill(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: "running" not in states(tmp_path))  # the running cell gets a signal from the kernel, and exits
    record = sweep_of(tmp_path)
    assert len(record.cells) == 4
    finished = [cell for cell in record.cells if record.standing(cell)[0] == "finished"]
    assert 2 <= len(finished) < 4
    shown = status(record.path)
    assert f"4 runs: {len(finished)} finished" in shown
    assert re.search(r"^failed .*\(killed by SIGKILL; the kernel does so when memory runs out\)$", shown, re.M)
    before = {cell.run: untouched(record.run_of(cell)) for cell in finished}

    printed = runner.train(tmp_path, "-m", *SHORT, seeds)
    for cell in finished:
        assert untouched(record.run_of(cell)) == before[cell.run]
        assert f"{cell.run} is finished: {cell.settings[0]}" in printed
    assert printed.count("checks   ") == 4 - len(finished)
    assert "4 runs: 4 finished" in printed
    rows = json.loads(status(record.path, "--json"))["rows"]
    assert [row["settings"] for row in rows] == [[f"compute.seed={seed}"] for seed in range(4)]
    assert all((row["state"], row["samples_seen"]) == ("finished", 32) for row in rows)
    assert all(row["metric"] > 0 for row in rows)
    assert "4 runs: 4 finished" in status(tmp_path), "a folder of runs has the same rows"


@pytest.mark.ci
def test_failed_cells_are_rows_and_a_repeat_runs_only_them(runner: Any, tmp_path: Path, small: list[str]) -> None:
    (tmp_path / "sweeps_loss.py").write_text(LOSS)
    runs, mine = tmp_path / "runs", ["loss._target_=sweeps_loss.Mine", f"loss.options.folder={tmp_path}"]
    argv = ["-m", f"runs={runs}", *small, *SHORT, *mine, "loss.options.fail=1,0,9", "model.text.context_length=32,33"]
    refused = runner.start("train.py", *argv)
    assert (refused.wait(), "is beyond the 32 positions" in refused.text()) == (2, True)
    assert not runs.exists(), "a problem of the config alone stops the sweep before its first cell"

    argv[-1] = "model.vision.timm=small_resnet,resnet5o"
    environment = {"PYTHONPATH": str(tmp_path)}
    child = runner.start("train.py", *argv, env=environment)
    assert child.wait() not in (0, 130, 143), child.text()
    record = sweep_of(runs)
    found = {tuple(cell.settings): record.standing(cell) for cell in record.cells}
    whole = argv[-1].partition(",")[0]
    crashed = found.pop(("loss.options.fail=1", whole))
    assert crashed[0] == "failed"
    assert "ZeroDivisionError on rank 0: no such luck" in crashed[1]
    killed = found.pop(("loss.options.fail=9", whole))
    assert killed == ("failed", "killed by SIGKILL; the kernel does so when memory runs out")
    assert found.pop(("loss.options.fail=0", whole))[0] == "finished"
    assert len(found) == 3
    assert all(state == "failed" and "resnet5o" in reason for state, reason in found.values()), found
    lines = child.text().splitlines()
    head = max(k for k, line in enumerate(lines) if line.startswith("state"))  # of the table, below the banners
    assert [line.split()[0] for line in lines[head + 1 : head + 7]] == ["failed"] * 5 + ["finished"]
    assert "6 runs: 1 finished, 5 failed" in lines[-1]

    (tmp_path / "fixed").touch()
    done = next(cell for cell in record.cells if record.standing(cell)[0] == "finished")
    before = untouched(record.run_of(done))
    argv[-1] = whole
    child = runner.start("train.py", *argv, env=environment)
    assert child.wait() == 0, child.text()
    assert f"{done.run} is finished: " in child.text()
    assert untouched(record.run_of(done)) == before
    assert child.text().count("checks   ") == 2
    assert "3 runs: 3 finished" in child.text()


@pytest.mark.ci
def test_two_cells_of_two_ranks_are_two_directories_and_four_processes(
    runner: Any, tmp_path: Path, small: list[str]
) -> None:
    (tmp_path / "sweeps_loss.py").write_text(LOSS)
    mine = ["loss._target_=sweeps_loss.Mine", f"loss.options.folder={tmp_path}", "loss.options.fail=0"]
    argv = ["-m", f"runs={tmp_path / 'runs'}", *small, *SHORT, *mine, "compute.seed=0,1", "cluster=ddp"]
    child = runner.start("train.py", *argv, "cluster.devices=2", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert child.wait() == 0, child.text()
    runs = [path for path in (tmp_path / "runs").iterdir() if (path / "config.yaml").exists() and not path.is_symlink()]
    assert len(runs) == 2
    assert len(set((tmp_path / "processes.txt").read_text().split())) == 4


def test_a_stop_signal_reaches_the_cell_and_ends_the_sweep(runner: Any, tmp_path: Path, small: list[str]) -> None:
    long = ["compute.duration=1000 steps", "compute.seed=0,1"]
    child = runner.start("train.py", "-m", f"runs={tmp_path}", *small, *long)
    child.wait_for("sample 32/")
    (shown,) = (row for row in rows_of(sweep_of(tmp_path).path)[0] if row.state == "running")
    assert shown.total_samples == 16_000
    assert child.kill(signal.SIGTERM) == 128 + signal.SIGTERM, child.text()
    assert states(tmp_path) == ["stopped", "waiting"]
    assert re.search(r"^stopped .*\(asked to by SIGTERM\)$", child.text(), re.M)
    assert re.search(r"^2 runs: 1 waiting, 1 stopped$", child.text(), re.M)


def test_a_run_whose_process_is_gone_is_interrupted(runner: Any, tmp_path: Path, small: list[str]) -> None:
    child = runner.start("train.py", f"runs={tmp_path}", *small, "compute.duration=1000 steps")
    child.wait_for("sample 32/")
    (row,) = rows_of(tmp_path)[0]
    assert (row.state, row.metric is not None, (row.seconds_left or 0) > 0) == ("running", True, True)
    child.kill()
    (row,) = rows_of(tmp_path)[0]
    assert (row.state, row.seconds_left) == ("interrupted", None)
    assert read_json(tmp_path / "latest" / "status.json")["status"] == "running"


def test_status_names_what_it_cannot_read(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clip_lightning.run.sweep", "status"]
    for folder, sentence in ((tmp_path, "holds neither sweep.json nor runs"), (tmp_path / "no", "does not exist")):
        done = subprocess.run([*command, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, sentence in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_the_table_shows_failures_first() -> None:
    rows = [
        Row("a", ["x=1"], "finished", "", 10, 10, 0.5, 60.0, None),
        Row("b", ["x=2"], "failed", "it broke", 2, 10, None, None, None),
        Row("c", ["x=3"], "running", "", 5, 10, 0.25, 30.0, 30.0),
    ]
    lines = table(rows, "acc1").splitlines()
    assert [line.split()[0] for line in lines] == ["state", "failed", "running", "finished", "3"]
    assert lines[1].endswith("x=2  (it broke)")
    assert lines[-1] == "3 runs: 1 finished, 1 running, 1 failed"
