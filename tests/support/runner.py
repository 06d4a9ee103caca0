"""Runs of the real entry files, in small: a warmed process forks one child per run."""

import contextlib
import json
import os
import signal
import socket
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
    "logger=none",
    "cluster.log_every=1 steps",
    "eval=none",
    "data.validation.num_samples=0",
]


@dataclass
class Child:
    """A run that was started.

    Attributes:
        pid: of rank 0.
        others: process ids of the other ranks where `Runner.start` has started them.
    """

    pid: int
    out: Path
    program: subprocess.Popen
    code: int | None = None
    others: tuple[int, ...] = ()

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
    """Starts train.py, evaluate.py and modules."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder, self.count = folder, 0
        self.last: Child | None = None
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        pipe = subprocess.PIPE
        self.program = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("warm_program.py")],
            stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip

    def start(
        self, entry: str, *argv: str, env: dict[str, str] | None = None, ranks: int = 1, cwd: Path = ROOT
    ) -> Child:
        """A run in the background; one at a time.

        Args:
            entry: a file of the checkout, or "-m MODULE".
            ranks: more than 1: they are started here with the variables that torchrun sets, which is fast.
        """
        if self.last is not None and self.last.code is None:  # left behind by a test that failed
            self.last.kill()
        self.count += 1
        variables = [{**(env or {}), **place} for place in _places(ranks)]
        entry = entry if entry.startswith("-m ") else str(ROOT / entry)
        out = self.folder / f"out{self.count}.txt"
        job = {"entry": entry, "argv": argv, "out": str(out), "cwd": str(cwd), "env": variables}
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(json.dumps(job) + "\n")
        self.program.stdin.flush()
        first, *others = map(int, self.program.stdout.readline().split())
        self.last = Child(first, out, self.program, others=tuple(others))
        return self.last

    def train(self, runs: Path, *argv: str, code: int = 0, ranks: int = 1) -> str:
        """A small run to its end; returns what it printed."""
        child = self.start("train.py", f"runs={runs}", *SMALL, *argv, ranks=ranks)
        assert child.wait() == code, child.text()
        return child.text()

    def close(self) -> None:
        """Ends the warmed process."""
        assert self.program.stdin is not None
        self.program.stdin.close()
        self.program.wait()


def _places(ranks: int) -> list[dict[str, str]]:
    """The environment that torchrun sets for each rank of one node; nothing for a run that starts its own."""
    if ranks == 1:
        return [{}]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
