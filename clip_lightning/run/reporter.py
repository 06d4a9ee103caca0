"""Rank 0's sink: every number goes to the tracker, to the screen, and where the run stands to `status.json`."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from clip_lightning.data.order.skip_windows import SkipWindow
from clip_lightning.records import Record
from clip_lightning.reliability.status import write_status
from clip_lightning.run.console.progress import Interval, Screen, evaluation_lines
from clip_lightning.run.divergence import Rollback
from clip_lightning.run.session import Sink
from clip_lightning.run.tracker import Tracker


class Reporter(Sink):
    """Reports for all ranks."""

    def __init__(self, path: Path, tracker: Tracker, screen: Screen) -> None:
        """Args: path: the run's directory."""
        self.path, self.tracker, self.screen = path, tracker, screen

    def interval(self, interval: Interval, records: list[Record]) -> None:
        """Writes and shows the numbers of an interval."""
        self.tracker.write(records)
        self.screen.interval(interval)
        with suppress(OSError):  # on a full disk an old status stands; the checkpoints tell of it
            write_status(self.path, "running", samples_seen=interval.samples_seen, total_samples=interval.total_samples)

    def evaluation(self, records: list[Record]) -> None:
        """Writes an evaluation and shows a line per task."""
        self.tracker.write(records)
        for line in evaluation_lines(records):
            self.screen.say(line)

    def is_evaluated(self, samples_seen: int) -> bool:
        """Whether there are records of an evaluation at this place; its last one says so."""
        return any(
            record.what == "evaluation_seconds" and record.samples_seen == samples_seen
            for record in self.tracker.records()
        )

    def rollback(self, rollback: Rollback) -> None:
        """Forgets the numbers of the course that is left, and says why."""
        self.tracker.resume_at(rollback.samples_seen)
        self.screen.say(rollback.line)

    def skip_windows(self, windows: Sequence[SkipWindow]) -> None:
        """Writes those of which there is no record yet: a kill may have come between a checkpoint and its record."""
        if windows:
            records = [
                Record(what="skip_windows", value=float(begin), n=end - begin, split="train", samples_seen=samples_seen)
                for samples_seen, begin, end in windows
            ]
            known = {(record.what, record.value, record.n) for record in self.tracker.records()}
            self.tracker.write(record for record in records if (record.what, record.value, record.n) not in known)
