"""A run that is killed at random moments, again and again, until it ends: what is lost, and is the end the same?

    python -m tests.run.kills --kills 100

prints a table. A kill is SIGKILL to one rank, drawn at random, after a random step, and to the others up to 0.3 s
later, as torchrun ends them; every fifth comes while a checkpoint is being written. Then the same command resumes.
"""

import argparse
import os
import random
import re
import signal
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.run.test_resume import assert_bit_equal, final_state, losses
from tests.support.runner import SMALL, Child, Runner

BATCH, EVERY = 24, 2  # 24 is shared evenly by 1, 2, 3 and 4 ranks
LENGTH = ["compute.duration=40 steps", f"compute.global_batch={BATCH}", f"cluster.checkpoint_every={EVERY} steps"]


class Case(NamedTuple):
    """A number of ranks, and the settings of their cluster."""

    ranks: int
    settings: list[str]


def _case(cluster: str, ranks: int, *settings: str) -> Case:
    return Case(ranks, [f"cluster={cluster}", f"cluster.devices={ranks}", "cluster.accelerator=cpu", *settings])


CASES = {
    "one process": Case(1, []),
    "DDP, 2 processes": _case("ddp", 2),
    "DDP, 3 processes": _case("ddp", 3),
    "DDP, 4 processes": _case("ddp", 4),
    "FSDP2, 2 processes": _case("fsdp", 2),
    "FSDP2, 3 processes": _case("fsdp", 3),
    "FSDP2, 4 processes": _case("fsdp", 4),
    "HSDP, 2 x 2 processes": _case("hsdp", 4, "cluster.nodes=1", "cluster.shard_size=2"),
}
SECONDS = 120  # for whatever should take a moment


@dataclass
class Kills:
    """What became of the kills of one case.

    Attributes:
        inside_save: how many came while a checkpoint was being written.
        lost_steps: of each kill: from the newest checkpoint to the last step that was shown.
        num_runs: that were resumed to their end, each bit-equal to the one never killed.
    """

    inside_save: int = 0
    lost_steps: list[int] = field(default_factory=list)
    num_runs: int = 0


def kill_and_resume(runner: Runner, folder: Path, case: Case, num_kills: int, seed: int = 0) -> Kills:
    """Kills runs of one config until there were so many kills, and lets the last one end.

    Raises: AssertionError where a run does not resume, or ends with other bits or losses than the one never killed.
    """
    draw, found = random.Random(seed), Kills()
    ranks, settings = case
    runner.train(folder / "whole", *LENGTH, *settings, ranks=ranks)
    while len(found.lost_steps) < num_kills:
        runs = folder / f"cut{found.num_runs}"
        while len(found.lost_steps) < num_kills:
            child = runner.start("train.py", f"runs={runs}", *SMALL, *LENGTH, *settings, ranks=ranks)
            wants_save = len(found.lost_steps) % 5 == 4
            if not _wait(child, runs, wants_save, draw):
                break
            is_inside = bool(_half_written(runs))
            processes = [child.pid, *child.others]
            _kill(processes.pop(draw.randrange(ranks)))
            time.sleep(0.3 * draw.random())
            for process in processes:
                _kill(process)
            if child.wait() == 0:
                break
            _all_gone(runs)
            found.inside_save += is_inside
            found.lost_steps.append(_shown(child) - _saved(runs))
        runner.train(runs, *LENGTH, *settings, ranks=ranks)
        assert_bit_equal(final_state(runs), final_state(folder / "whole"))
        assert losses(runs) == losses(folder / "whole")
        found.num_runs += 1
    return found


def _wait(child: Child, runs: Path, wants_save: bool, draw: random.Random) -> bool:
    """Until the moment has come, up to 8 steps after the first one, and False if the run has ended before it.

    Counted in steps, so that a slow machine kills at the same places of a run.
    """
    end, num_steps = time.monotonic() + SECONDS, 1 + draw.randrange(8)
    while child.text().count("| loss ") < num_steps or (wants_save and not _half_written(runs)):
        if _has_ended(child):
            return False
        assert time.monotonic() < end, child.text()
        time.sleep(0.0005)
    time.sleep(0.05 * draw.random())
    return True


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(process, signal.SIGKILL)


def _has_ended(child: Child) -> bool:
    """Whether it has shown the end table."""
    return "\nstatus  " in child.text()


def _half_written(runs: Path) -> list[Path]:
    return list(runs.glob("*/checkpoints/.writing-*"))


def _saved(runs: Path) -> int:
    """Steps of the newest checkpoint."""
    return max((int(path.name) for path in runs.glob("*/checkpoints/*") if path.name.isdecimal()), default=0) // BATCH


def _shown(child: Child) -> int:
    """The last step that it printed."""
    return (
        max(int(float(n) * (1000 if k else 1)) for n, k in re.findall(r"sample ([\d.]+)(k?)/", child.text())) // BATCH
    )


def _all_gone(runs: Path) -> None:
    """Waits until no process of the run is left."""
    end, pattern = time.monotonic() + SECONDS, f"runs={runs}".encode()
    while left := [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if pattern in _read(path)]:
        assert time.monotonic() < end, f"processes {left} are left"
        time.sleep(0.02)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def main() -> None:
    """Prints the table."""
    flags = argparse.ArgumentParser(description="Kills runs at random moments and compares how they end.")
    flags.add_argument("--kills", type=int, default=100, help="in all (default 100)")
    flags.add_argument("--only", default="", help="only the cases whose name holds this")
    settings = flags.parse_args()
    print("| | kills | inside a save | steps lost: median, most | runs ended | bit-equal |\n|---|---|---|---|---|---|")
    cases = {name: case for name, case in CASES.items() if settings.only in name}
    for k, (name, case) in enumerate(cases.items()):
        share = settings.kills // len(cases) + (k < settings.kills % len(cases))
        with tempfile.TemporaryDirectory() as folder:
            runner = Runner(Path(folder))
            found = kill_and_resume(runner, Path(folder), case, share)
            runner.close()
        lost = f"{statistics.median(found.lost_steps):g}, {max(found.lost_steps)}"
        print(f"| {name} | {share} | {found.inside_save} | {lost} | {found.num_runs} | all |", flush=True)


if __name__ == "__main__":
    main()
