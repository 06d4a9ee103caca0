"""Rank 0's sink: every number goes to the tracker, to the screen, and where the run stands to `status.json`."""

from pathlib import Path

from clip_lightning.records import Record
from clip_lightning.run.directory import write_status
from clip_lightning.run.progress import Interval, Screen, evaluation_lines
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
        write_status(self.path, "running", samples_seen=interval.samples_seen, total_samples=interval.total_samples)

    def evaluation(self, records: list[Record]) -> None:
        """Writes an evaluation and shows a line per task."""
        self.tracker.write(records)
        for line in evaluation_lines(records):
            self.screen.say(line)
