"""Runs the cells of a sweep, each in a process of its own, forked from this one when everything is imported.

A cell that fails, crashes or is killed is a row of the table with its reason, and the next one begins; what is finished
stays as it is. A stop signal is passed to the running cell, which saves and exits, and ends the sweep; a cell whose
sweep is killed gets SIGTERM from the kernel. No cell inherits another's environment, ranks or peak of memory.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

from clip_lightning.config import compose, identity
from clip_lightning.config.grid import Cell
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError
from clip_lightning.reliability.atomic_files import write_atomically
from clip_lightning.reliability.preemption import SIGNALS
from clip_lightning.reliability.run_paths import SWEEP_VARIABLE, SWEEPS, directory_of
from clip_lightning.reliability.status import now
from clip_lightning.run.console.headline import headline
from clip_lightning.run.launch import are_started_outside
from clip_lightning.run.plan.dry_run import dry_run_cells
from clip_lightning.run.process_rank import rank_of_process
from clip_lightning.run.sweep.table import (
    FILE,
    SweepCell,
    SweepRecord,
    failure_file,
    read,
    rows_of,
    table,
)
from clip_lightning.run.train import train
from clip_lightning.slurm import submit as slurm

_PR_SET_PDEATHSIG = 1
# W&B shows the runs of one group together; cells and jobs inherit it.
_WANDB_GROUP = "WANDB_RUN_GROUP"


def run_cells(cells: Sequence[Cell], command: Sequence[str], launch: Callable[[compose.Task], int]) -> int:
    """Notes the cells, hands them to the launcher, and shows the table; returns the exit code.

    Args:
        cells: checked, no two of the same run.
        command: the arguments of train.py without -m.
        launch: calls a task with the config and arguments of each cell, or leaves that to jobs elsewhere.
    """
    if are_started_outside():
        refusal = (
            "a sweep starts its runs by itself: write python train.py -m ... without srun (or with one task), torchrun"
        )
        raise UserError(*[refusal] * (rank_of_process() == 0))
    if any(cell.config.dry_run for cell in cells):
        return dry_run_cells(cells)
    record = begin(cells, command)
    num_pending = len(record.pending())
    print(
        f"sweep {record.path}: {len(cells)} cells, {len(cells) - num_pending} finished or at work\n"
        f"status   python -m clip_lightning.run.sweep status {record.path}",
        flush=True,
    )
    variables = {SWEEP_VARIABLE: str(record.path)}
    if _WANDB_GROUP not in os.environ:
        variables[_WANDB_GROUP] = record.path.name
    os.environ.update(variables)
    try:
        with _Turns(record) as turns:
            return launch(turns.take)
    finally:
        for name in variables:
            del os.environ[name]
        print(f"\n{table(*rows_of(record.path))}", flush=True)


def begin(cells: Sequence[Cell], command: Sequence[str]) -> SweepRecord:
    """Writes the record of a sweep before its first cell; notes of earlier cells are kept."""
    config: Config = cells[0].config
    found = [SweepCell(identity.run_name(cell.config), cell.settings, cell.argv) for cell in cells]
    names = "\n".join(sorted(cell.run for cell in found))
    name = f"{config.experiment or 'grid'}-{sha256(names.encode()).hexdigest()[:8]}"
    path = directory_of(config).parent / SWEEPS / name
    path.mkdir(parents=True, exist_ok=True)
    content = {"command": ["-m", *command], "cells": [asdict(cell) for cell in found]}
    write_atomically(path / FILE, json.dumps(content, indent=1) + "\n")
    return read(path)


def note_failure(sweep: Path, run: str, reason: str) -> None:
    """Notes why a cell ended without being finished; its next start forgets it."""
    file = failure_file(sweep, run)
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json.dumps({"reason": reason, "time": now()}) + "\n")


class _Turns:
    """Runs one cell after the other; while entered, stop signals are passed to the running cell.

    The cell is in a process group of its own, so that Ctrl-C reaches it once, from here.
    """

    def __init__(self, record: SweepRecord) -> None:
        self.record = record
        self.received: int | None = None
        self._cell: multiprocessing.process.BaseProcess | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Turns":
        self._before = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self, config: Config, argv: Sequence[str]) -> int:
        """Runs a cell unless it is finished; returns its exit code."""
        if self.received:
            return 128 + self.received
        run = identity.run_name(config)
        cell = next(cell for cell in self.record.cells if cell.run == run)
        state, _ = self.record.standing(cell)
        if state == "running" or (state == "finished" and not config.fresh):
            print(f"{run} is {state}{' elsewhere' * (state == 'running')}: {' '.join(cell.settings)}", flush=True)
            return 0
        print(f"\n{run}: {' '.join(cell.settings)}", flush=True)
        failure_file(self.record.path, run).unlink(missing_ok=True)
        if slurm.is_submitted(config):
            return slurm.submit(config)
        code = self._in_own_process(lambda: _cell(config, cell.argv, self.record.path))
        if code < 0:
            code = 128 - code
            if code not in compose.STOPPED_BY_SIGNAL:
                name = signal.Signals(code - 128).name
                hint = "; the kernel does so when memory runs out" * (code == 128 + signal.SIGKILL)
                note_failure(self.record.path, run, f"killed by {name}{hint}")
        return code

    def _in_own_process(self, work: Callable[[], int]) -> int:
        sys.stdout.flush()
        process = multiprocessing.get_context("fork").Process(target=_alone, args=(work, os.getpid()))
        # A signal between the fork and the child's own handlers would be lost: it waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
            self._cell = process
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        process.join()
        self._cell = None
        return process.exitcode or 0

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if self._cell is not None and self._cell.pid:
            with suppress(ProcessLookupError):
                os.kill(self._cell.pid, number)


def _alone(work: Callable[[], int], parent: int) -> None:
    """The body of a cell's process: signals as in a process of its own, and none that outlives its sweep."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    sys.exit(work())


def _cell(config: Config, argv: Sequence[str], sweep: Path) -> int:
    """Trains a cell, and notes failures that its directory may lack."""
    run = identity.run_name(config)
    try:
        print(headline(config, argv), flush=True)
        return train(config, argv)
    except UserError as error:
        note_failure(sweep, run, "; ".join(error.problems))
        return compose.print_error(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        traceback.print_exc()
        note_failure(sweep, run, f"{type(error).__name__}: {compose.first_line(error) or 'no message'}")
        return 1
