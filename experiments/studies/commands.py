"""The project's commands as a study calls them: each is printed before it runs."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clip_lightning.child_process import end_with_parent
from clip_lightning.errors import UserError

# A run on one core, evaluated at its end only; nothing of this changes what it learns.
_ALONE = (
    "logger=none", "eval.every=0 samples", "cluster.threads=1", "cluster.workers=1", "cluster.checkpoint_every=50%",
)  # fmt: skip
Step = Callable[[argparse.Namespace], None]


def run_steps(parser: argparse.ArgumentParser, steps: Mapping[str, Step], argv: Sequence[str] | None) -> int:
    """The command line of a study: `[STEP ...] --runs DIR --out DIR`; returns the exit code. Raises: UserError."""
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(steps)}, in this order (default: all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of tables and fits (default: that of the runs)")
    arguments = parser.parse_args(argv)
    if wrong := [step for step in arguments.steps if step not in steps]:
        raise UserError(f"there is no step {wrong[0]}; write some of {', '.join(steps)}")
    arguments.out = arguments.out or arguments.runs
    arguments.out.mkdir(parents=True, exist_ok=True)
    for step in arguments.steps or steps:
        steps[step](arguments)
    return 0


def scaling(*words: object) -> None:
    """`python -m clip_lightning.scaling WORDS`. Raises: SystemExit with its code where that is not 0."""
    if code := _start("-m", "clip_lightning.scaling", *words).wait():
        raise SystemExit(code)


def collect(runs: Path, table: Path) -> Path:
    """One row per run in the folder, in the order of the names."""
    scaling("collect", runs, "--out", table)
    return table


def sweeps(runs: Path, configs: Path, jobs: Sequence[Sequence[str]]) -> None:
    """Sweeps at the same time, each on one core; each runs what it has not finished.

    Args:
        configs: folder of the `experiment=` files.
        jobs: the words of each sweep.
    Raises: UserError: one of them did not finish.
    """
    started = [
        _start("train.py", "-m", f"--config-dir={configs}", *words, f"runs={runs}", *_ALONE, OMP_NUM_THREADS="1")
        for words in jobs
    ]
    if any([one.wait() for one in started]):  # a list: all are waited for
        raise UserError("a sweep did not finish; its table above says why, and the same command continues it")


def cells_of(file: Path) -> list[dict[str, Any]]:
    """What `plan --json` wrote. Raises: UserError: it is missing."""
    if not file.exists():
        raise UserError(f"{file} does not exist; run the step plan first")
    cells: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return cells


def _start(*words: object, **environment: str) -> subprocess.Popen[bytes]:
    command = [str(word) for word in words]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    ends_with_this = partial(end_with_parent, os.getpid(), signal.SIGTERM)  # otherwise sweeps outlive a killed study
    return subprocess.Popen([sys.executable, *command], env={**os.environ, **environment}, preexec_fn=ends_with_this)
