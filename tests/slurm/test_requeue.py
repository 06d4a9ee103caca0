"""When slurm/train.sbatch starts its job again: by itself, with an srun and a scontrol that say what a test wants."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What `scontrol show job` says of a job that runs, and once scancel, the time limit, or a partition that goes first has
# ended it (slurm-wlm 22.05). The first two are COMPLETING while the script still works; in the grace time it runs.
RUNS = "JobState=RUNNING Reason=None\n PreemptEligibleTime=2026-11-25T16:07:29 PreemptTime=None"
CANCELLED = RUNS.replace("RUNNING", "COMPLETING")
LIMIT = CANCELLED.replace("Reason=None", "Reason=TimeLimit")
PREEMPTED = RUNS.replace("PreemptTime=None", "PreemptTime=2026-11-25T16:07:33")


class Script:
    """slurm/train.sbatch outside SLURM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()

    def run(self, code: int, saved: str, job: str, file: Path = ROOT / "slurm" / "train.sbatch", **more: str) -> str:
        """What it prints when the tasks have left with a code, and their run has said why it ended."""
        say = f'echo {saved} >"$CLIP_LIGHTNING_SAVED"; ' if saved else ""
        self._command("srun", f"{say}exit {code}")
        self._command(
            "scontrol", f'[[ $1 == requeue ]] && echo "requeued $2"; [[ $2 == job ]] && echo "{job}"; [[ $2 == node ]]'
        )
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "12",
            "SLURM_JOB_NODELIST": "n1",
            **more,
        }
        command = ["bash", str(file), "model=default"]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert not (self.folder / ".saved-12").exists()
        return done.stdout

    def _command(self, name: str, body: str) -> None:
        file = self.bin / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


@pytest.mark.parametrize(
    ("code", "saved", "job", "says"),
    [
        (140, "SIGUSR2", RUNS, "saved before the time limit"),
        (142, "SIGALRM", RUNS, "saved before the time limit"),
        (143, "SIGUSR2", RUNS, "saved before the time limit"),  # srun has ended a rank that was leaving
        (143, "SIGTERM", LIMIT, "saved before the time limit"),  # met while it saved
        (143, "SIGTERM", PREEMPTED, "preempted"),
        (143, "", PREEMPTED, "preempted"),  # before its first step: no fault of the run's
        (1, "saved", RUNS, "exit code 1"),  # a task crashed, on a node that lives
        (137, "saved", RUNS, "exit code 137"),
        (1, "", RUNS, "exit code 1"),  # two more starts may try
        (140, "", RUNS, "exit code 140"),
        (143, "", LIMIT, "exit code 143"),
    ],
)
def test_a_job_that_slurm_has_ended_starts_again(script: Script, code: int, saved: str, job: str, says: str) -> None:
    printed = script.run(code, saved, job)
    assert f"{says}; the job starts again\nrequeued 12\n" in printed


@pytest.mark.parametrize(
    ("code", "saved", "job", "says"),
    [
        (140, "SIGUSR2", CANCELLED, "SLURM has ended the job, as scancel does"),
        (143, "SIGTERM", CANCELLED, "SLURM has ended the job, as scancel does"),
        (143, "SIGTERM", CANCELLED.replace("PreemptTime=None", "PreemptTime=2026-11-25T16:07:33"), "as scancel does"),
        (143, "SIGTERM", RUNS, "saved, asked to by SIGTERM"),
        (143, "", RUNS, "exit code 143, asked to before it had saved"),
        (2, "saved", RUNS, "exit code 2"),
        (0, "saved", RUNS, ""),
        (0, "", RUNS, ""),
    ],
)
def test_a_job_that_ended_otherwise_does_not_start_again(
    script: Script, code: int, saved: str, job: str, says: str
) -> None:
    printed = script.run(code, saved, job)
    assert "requeued" not in printed
    assert ("not started again by this script: " in printed) == bool(code)
    assert says in printed


def test_the_third_start_without_progress_is_the_last(script: Script, tmp_path: Path) -> None:
    def start(count: int, saved: str = "") -> bool:
        return "requeued 12" in script.run(1, saved, RUNS, SLURM_RESTART_COUNT=str(count))

    assert [start(0), start(1), start(2)] == [True, True, False]
    assert not list(tmp_path.glob(".saved*"))
    # Progress restarts the count; so does a submission by hand.
    assert [start(0), start(1), start(2, "saved"), start(3), start(4), start(5)] == [True] * 5 + [False]
    assert [start(0), start(1), start(0)] == [True] * 3


def test_starts_that_slurm_repeats_after_lost_nodes_end_too(script: Script, tmp_path: Path) -> None:
    (tmp_path / ".saved-12.starts").write_text("3\n")
    printed = script.run(1, "", RUNS, SLURM_RESTART_COUNT="3")
    assert "not started: 3 starts in a row have saved nothing new" in printed
    assert "requeued" not in printed
    # The last start was lost after it had saved.
    (tmp_path / ".saved-12.starts").write_text("3\n")
    (tmp_path / ".saved-12").write_text("saved\n")
    assert "requeued 12" in script.run(1, "", RUNS, SLURM_RESTART_COUNT="3")


def test_an_empty_array_is_no_error_in_an_old_bash() -> None:
    """bash before 4.4 calls "${SRUN[@]}" of an empty array unbound under set -u."""
    text = (ROOT / "slurm" / "train.sbatch").read_text()
    assert re.findall(r'(?<!\+)"\$\{(?:SRUN|RUNS)\[@\]\}"', text) == []


def test_one_job_of_an_array_starts_again_alone(script: Script) -> None:
    # The array's last job: by its own number, 12, scontrol would start all of them again.
    array = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "7"}
    assert "\nrequeued 12_7\n" in script.run(140, "SIGUSR2", RUNS, **array)


def test_a_run_that_never_began_becomes_failed_and_a_stopped_run_stays_stopped(script: Script, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    (run / "slurm").mkdir(parents=True)
    rendered = tmp_path / "train.sbatch"
    text = (ROOT / "slurm" / "train.sbatch").read_text()
    rendered.write_text(text.replace("RUNS=()", f"RUNS=({run})").replace("REQUEUE=yes", "REQUEUE=no"))
    status = run / "status.json"
    status.write_text(json.dumps({"status": "submitted", "reason": "job 12"}, indent=1))
    assert "not started again by this script: exit code 140, and cluster.slurm" in script.run(140, "", RUNS, rendered)
    assert json.loads(status.read_text()) == {"status": "failed", "reason": "exit code 140, see slurm/output.txt"}
    stopped = json.dumps({"status": "stopped", "reason": "asked to by SIGUSR2"}, indent=1)
    status.write_text(stopped)
    printed = script.run(140, "SIGUSR2", RUNS, rendered)
    assert "not started again by this script: saved before the time limit, and cluster.slurm.requeue=false" in printed
    assert status.read_text() == stopped
    assert not list((run / "slurm").glob("saved.txt*"))
