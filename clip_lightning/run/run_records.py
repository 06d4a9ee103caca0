"""The records of a run, `metrics.jsonl`: every number is written there, whatever the loggers do."""

from collections.abc import Callable, Iterable
from pathlib import Path

from clip_lightning.config import identity
from clip_lightning.config.schema import Config
from clip_lightning.records import Record, RecordWriter, read_records, write_parquet
from clip_lightning.reliability import provenance


class RunRecords:
    """Writes records, and removes those after the checkpoint that a rollback returns to."""

    def __init__(self, config: Config, folder: Path, notify: Callable[[str], None] = print) -> None:
        """Args.

        folder: the run's directory.
        notify: prints a line, where the disk is full.
        """
        self.path = folder / "metrics.jsonl"
        self._writer = RecordWriter(
            self.path,
            notify,
            run=folder.name,
            model=identity.model_name(config),
            data=config.data.name,
            science=identity.science_hash(config),
            precision=config.compute.precision,
            versions=provenance.versions_line(provenance.versions()),
        )

    def resume_at(self, samples_seen: int) -> None:
        """Removes the records after the checkpoint that training resumes from."""
        self._writer.truncate_after(samples_seen)

    def write(self, records: Iterable[Record]) -> list[Record]:
        """Writes records; they are on their way to the disk when this returns. Returns them with their context."""
        return self._writer.write(records)

    def read(self) -> list[Record]:
        """All records of the run so far, in the order they were written."""
        return read_records(self.path)

    def close(self) -> None:
        """Writes `records.parquet` beside the JSONL."""
        self._writer.close()
        write_parquet(self.read(), self.path.with_name("records.parquet"))
