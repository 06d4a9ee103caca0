"""What a run prints while it trains: the banner, then a bar on a terminal or a line per interval elsewhere.

Both show the same fields.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from clip_lightning.formatting import clock, count, percent, with_interval
from clip_lightning.records import Record
from clip_lightning.score_names import OWN_METRICS, task_name


@dataclass(frozen=True)
class Interval:
    """The numbers of one logged line; None where a number does not exist.

    Attributes:
        samples_per_second: over the interval, evaluation and saving left out.
        data_wait: share of the interval's time spent waiting for the loader, 0..1.
        mfu: model FLOPs utilisation, 0..1; None where the device's peak is not known.
        flops_per_second: forward and backward of the towers, of all ranks; padding is not counted.
        seconds_left: estimate to the end of training.
    """

    samples_seen: int
    total_samples: int
    loss: float
    logit_scale: float
    learning_rate: float
    gradient_norm: float
    samples_per_second: float
    data_wait: float
    flops_per_second: float
    mfu: float | None
    seconds_left: float


class Screen(Protocol):
    """What rank 0 shows; other ranks show nothing."""

    def say(self, text: str) -> None:
        """Prints lines."""

    def interval(self, numbers: Interval) -> None:
        """Shows where training is."""

    def close(self) -> None:
        """Restores the terminal."""


class Lines:
    """One line per interval: batch logs, files, pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout

    def say(self, text: str) -> None:
        """Prints lines at once, also into a pipe."""
        print(text, file=self.stream, flush=True)

    def interval(self, numbers: Interval) -> None:
        """Prints one line."""
        self.say(interval_line(numbers))

    def close(self) -> None:
        """Nothing is open."""


class Bar:
    """A bar on a terminal; lines are printed above it."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def say(self, text: str) -> None:
        """Prints lines above the bar."""
        self.console.print(text, markup=False)

    def interval(self, numbers: Interval) -> None:
        """Moves the bar."""
        if self._progress is None:
            columns = (BarColumn(bar_width=16), TextColumn("{task.description}", markup=False))
            self._progress = Progress(*columns, console=self.console)
            self._progress.start()
            self._task = self._progress.add_task("", total=numbers.total_samples)
        self._progress.update(self._task, completed=numbers.samples_seen, description=interval_line(numbers))

    def close(self) -> None:
        """Stops the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def screen() -> Screen:
    """A bar on a terminal, lines elsewhere."""
    return Bar() if sys.stdout.isatty() else Lines()


def interval_line(numbers: Interval) -> str:
    """The fields of one interval."""
    share = numbers.samples_seen / numbers.total_samples
    fast = (
        f"mfu {percent(numbers.mfu, 0)}" if numbers.mfu is not None else f"{count(numbers.flops_per_second, 'G')}FLOP/s"
    )
    return " | ".join(
        [
            f"sample {count(numbers.samples_seen)}/{count(numbers.total_samples)} {percent(share)}",
            f"loss {numbers.loss:.3f}",
            f"scale {numbers.logit_scale:.1f}",
            f"lr {numbers.learning_rate:.1e}".replace("e-0", "e-"),
            f"grad {numbers.gradient_norm:.2f}",
            f"{count(numbers.samples_per_second)}/s",
            fast,
            f"data {percent(numbers.data_wait)}",
            f"eta {clock(numbers.seconds_left)}",
        ]
    )


def evaluation_lines(records: Sequence[Record]) -> list[str]:
    """One line per task of an evaluation: accuracy with its interval, n and chance; or loss and recall."""
    lines = []
    for task, weights in dict.fromkeys((record.task, record.weights) for record in records if record.task):
        parts, rows = [], [r for r in records if (r.task, r.weights, r.variant) == (task, weights, "")]
        for record in rows:
            if name := _SHOWN.get(record.what):
                parts.append(f"{name} {with_interval(record.value, record.low, record.high)}")
            elif record.what.startswith("val_loss_"):
                parts.append(f"{record.what} {record.value:.3f}")
        first = rows[0]
        chance = f", chance {percent(first.chance)}" if first.what == "acc1" and first.chance is not None else ""
        shown = task_name(task, weights)
        if not parts:
            continue
        lines.append(f"eval @{count(first.samples_seen)}  {shown}  {'  '.join(parts)}  (n={first.n or 0:,}{chance})")
    return lines


_SHOWN = {"acc1": "top-1", "recall_at_1": "recall@1", **{what: what for what in OWN_METRICS}}
