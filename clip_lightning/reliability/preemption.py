"""Signals that stop a run: they set a flag, and all ranks act on it together between two steps.

SIGINT (Ctrl-C), SIGTERM (a scheduler), SIGUSR2 (a scheduler's warning; NCCL takes USR1) and SIGALRM (the run's own
clock, before its time limit) mean the same: finish this step, save, exit. A second Ctrl-C exits at once. Nothing is
saved and no collective is called inside a handler.
"""

import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from clip_lightning.config.schema import ClusterConfig
from clip_lightning.reliability.checkpoint_callback import CheckpointCallback
from clip_lightning.reliability.rank_group import control_group

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGALRM)
# Warnings before a time limit; the scheduler decides whether the run starts again.
_WARNINGS = (signal.SIGUSR2, signal.SIGALRM)
# Without a warning a run stops a tenth of its limit before it, at most these seconds.
_MOST_SECONDS_TO_SAVE = 300.0


class StopSignals:
    """While entered, the signals only set `received`.

    Attributes:
        received: the first signal to stop, or None; SIGTERM replaces a warning.
    """

    def __init__(self, leave_after: float | None = None) -> None:
        """Args: leave_after: seconds from now after which the run stops itself."""
        self.received: signal.Signals | None = None
        self._leave_at = None if leave_after is None else time.monotonic() + leave_after
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        if self._leave_at is not None:
            signal.setitimer(signal.ITIMER_REAL, max(self._leave_at - time.monotonic(), 0.001))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Sets the handlers, again after Lightning has replaced them at the start of a fit."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    @property
    def exit_code(self) -> int:
        """128 + the signal, as in shells; 0 without a signal."""
        return 128 + self.received if self.received else 0

    @property
    def reason(self) -> str:
        """Why the run stops; empty without a signal."""
        if self.received == signal.SIGALRM:
            return "cluster.time_limit_minutes is near"
        return f"asked to by {self.received.name}" if self.received else ""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            os.write(sys.stderr.fileno(), b"\nexited at once; the newest checkpoint is complete\n")
            os._exit(128 + number)
        # TERM after a warning comes from scancel or from the time limit itself, and takes precedence.
        if self.received is None or (number == signal.SIGTERM and self.received in _WARNINGS):
            self.received = signal.Signals(number)


def leave_after(cluster: ClusterConfig) -> float | None:
    """Seconds after its start at which a run stops, to save before its time limit; None without a limit."""
    if cluster.time_limit_minutes is None:
        return None
    limit = 60 * cluster.time_limit_minutes
    if cluster.scheduler == "slurm":  # SLURM's warning comes first; this one is for where it does not arrive
        return limit - cluster.slurm.signal_seconds
    return limit - min(limit / 10, _MOST_SECONDS_TO_SAVE)


class PreemptionCallback(Callback):
    """Stops training on all ranks after the same step once any of them received a signal.

    It also lets all ranks save after the same step once rank 0's newest checkpoint is too old. With several ranks both
    flags travel in a small all-reduce in the background, whose result is read one step later: no step waits for it, and
    the device is not involved.
    """

    def __init__(self, signals: StopSignals, checkpoint: CheckpointCallback | None = None) -> None:
        """Args: checkpoint: has its turn after this callback; None: nothing is saved by time."""
        self.signals, self.checkpoint = signals, checkpoint
        self._group: Any = None
        self._flags = torch.zeros(2, dtype=torch.int64)
        self._pending: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the handlers again after Lightning, and makes the group for flags on the CPU."""
        self.signals.install()
        self._group = control_group()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compares flags; every rank reads the same ones after the same step."""
        number, is_late = self._agreed()
        if number:
            self.signals.received = self.signals.received or signal.Signals(number)
            trainer.should_stop = True
        if is_late and self.checkpoint is not None:
            self.checkpoint.request()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Completes the pending all-reduce."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def _agreed(self) -> tuple[int, bool]:
        """The signal that any rank received (0: none), and whether rank 0's newest checkpoint is too old."""
        is_late = self.checkpoint is not None and self.checkpoint.is_late
        if self._group is None:
            return self.signals.received or 0, is_late
        number, was_late = 0, 0
        if self._pending is not None:
            self._pending.wait()
            number, was_late = self._flags.tolist()
        self._flags[0] = self.signals.received or 0
        self._flags[1] = is_late and dist.get_rank() == 0 and not was_late
        self._pending = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return number, bool(was_late)
