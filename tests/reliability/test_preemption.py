"""Signals set a flag that ranks act on together; a second Ctrl-C leaves at once; Lightning's handlers stay out."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clip_lightning.reliability.preemption import StopSignals

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "preempted_program.py"


def start(*arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step 3"):
        assert process.poll() is None
    return process


@pytest.mark.ci
@pytest.mark.parametrize("name", ["SIGTERM", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGINT", "SIGUSR2"))])
def test_a_signal_ends_the_fit_after_a_step_with_its_exit_code(name: str) -> None:
    process = start("1")
    process.send_signal(signal.Signals[name])
    out, _ = process.communicate(timeout=300)
    assert "train end" in out
    assert process.returncode == 128 + signal.Signals[name]


def test_a_second_ctrl_c_exits_at_once() -> None:
    process = start("1", "deaf")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert "train end" not in out
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("came", "counts"),
    [
        (("SIGUSR2", "SIGTERM"), "SIGTERM"),  # scancel after the warning
        (("SIGALRM", "SIGTERM", "SIGUSR2"), "SIGTERM"),
        (("SIGTERM", "SIGUSR2"), "SIGTERM"),
        (("SIGUSR2", "SIGINT"), "SIGUSR2"),
        (("SIGINT", "SIGTERM"), "SIGINT"),
    ],
)
def test_sigterm_replaces_a_warning(came: tuple[str, ...], counts: str) -> None:
    with StopSignals() as signals:
        for name in came:
            signal.raise_signal(signal.Signals[name])
    assert signals.received == signal.Signals[counts]
    assert signals.exit_code == 128 + signal.Signals[counts]


@pytest.mark.ci
def test_ranks_stop_after_the_same_step_when_one_receives_a_signal() -> None:
    process = start("2")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    ends = sorted(line for line in out.splitlines() if line.startswith("train end"))
    assert [end.split(" at ")[0] for end in ends] == ["train end of rank 0", "train end of rank 1"]
    assert len({end.split(" at ")[1] for end in ends}) == 1
    assert process.returncode == 143
