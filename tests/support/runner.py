"""Runs of the real entry files, in small: a warmed process forks one child per run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A run of the embedded default that takes seconds.
SMALL = [
    "compute.duration=8 steps",
    "compute.global_batch=16",
    "cluster.workers=0",
    "cluster.checkpoint_every=2 steps",
    "tracker=none",
    "tracker.log_every=1 steps",
    "eval=none",
    "data.validation.num_samples=0",
]


@dataclass
class Child:
    """A run that was started."""

    pid: int
    out: Path
    program: subprocess.Popen
    code: int | None = None

    def text(self) -> str:
        """What it printed so far."""
        return self.out.read_text() if self.out.exists() else ""

    def wait_for(self, words: str, seconds: float = 120) -> None:
        """Until it has printed these words."""
        end = time.monotonic() + seconds
        while words not in self.text():
            assert time.monotonic() < end, self.text()
            time.sleep(0.002)

    def wait(self) -> int:
        """Its exit code; minus the signal when it was killed."""
        if self.code is None:
            assert self.program.stdout is not None
            self.code = int(self.program.stdout.readline())
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Sends a signal to it and waits."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return self.wait()


class Runner:
    """Starts train.py and evaluate.py."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder, self.count = folder, 0
        self.last: Child | None = None
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        pipe = subprocess.PIPE
        self.program = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("warm_program.py")],
            stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip

    def start(self, entry: str, *argv: str, env: dict[str, str] | None = None) -> Child:
        """A run in the background; one at a time."""
        if self.last is not None and self.last.code is None:  # left behind by a test that failed
            self.last.kill()
        self.count += 1
        job = {"entry": entry, "argv": argv, "out": str(self.folder / f"out{self.count}.txt"), "env": env or {}}
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(json.dumps(job) + "\n")
        self.program.stdin.flush()
        self.last = Child(int(self.program.stdout.readline()), Path(str(job["out"])), self.program)
        return self.last

    def train(self, runs: Path, *argv: str, code: int = 0) -> str:
        """A small run to its end; returns what it printed."""
        child = self.start("train.py", f"runs={runs}", *SMALL, *argv)
        assert child.wait() == code, child.text()
        return child.text()

    def close(self) -> None:
        """Ends the warmed process."""
        assert self.program.stdin is not None
        self.program.stdin.close()
        self.program.wait()
