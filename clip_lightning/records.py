"""Leaf: the one typed row for every number that the project reports, its writer and its reader.

A record carries what its number was computed from, so that figures and scaling fits need nothing but records. Values
are fractions of 1 (never percent), seconds, samples, or nats; `what` names the quantity in the field's words.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

# `Record.weights` of the running average.
EMA = "ema"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One number.

    Attributes:
        what: the quantity: acc1, acc5, mean_per_class, recall_at_1, loss, learning_rate, samples_per_second, ...
        value: its value.
        task: the data set or task it was measured on; empty for numbers of training itself.
        split: which part of it: train, validation, test, ...
        variant: empty for a task's own prompts; otherwise in what the measurement differs from the task's own: the name
            of a further prompt set. Summaries, curves and loggers that have one number per task read the empty one.
        group: the region, income class or other group of images that the number is of; empty for all images.
        prompts: the set of templates, or empty.
        prompts_hash: of the class names and templates, 8 hexadecimal digits; sets of one name can differ.
        weights: which of the model's weights were measured: empty for those of training, `ema` for their average.
        low, high: the ends of its 95 % interval, where it has one.
        n: how many images or pairs it was counted over, where it was counted.
        chance: the value of guessing, where it is known.
        per_class: recall of each class in the order of the labels, None for a class without images; of
            `mean_per_class` only.
        samples_seen: how far training was.
        seconds: time that the evaluation took which gave this record and the others of its images, on rank 0.
        note: sentences about the number: images that could not be read, fewer images than the set has, a stand-in
            for the paper's set.
        names_from: where class names and templates were read from.
        weights_hash: of all weights that were measured, 16 hexadecimal digits.
        transform: how images were made for the model: size, mode and interpolation.
        run, model, data, science, precision, versions: what produced it.
    """

    what: str
    value: float
    task: str = ""
    split: str = ""
    prompts: str = ""
    prompts_hash: str = ""
    weights: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    chance: float | None = None
    samples_seen: int = 0
    run: str = ""
    model: str = ""
    data: str = ""
    science: str = ""
    precision: str = ""
    versions: str = ""
    per_class: tuple[float | None, ...] | None = None
    variant: str = ""
    group: str = ""
    seconds: float | None = None
    note: str = ""
    names_from: str = ""
    weights_hash: str = ""
    transform: str = ""


_WHOLE, _REAL = ("n", "samples_seen"), ("value", "low", "high", "chance", "seconds")
_TYPES = {
    **dict.fromkeys(_WHOLE, pa.int64()),
    **dict.fromkeys(_REAL, pa.float64()),
    "per_class": pa.list_(pa.float64()),
}
SCHEMA = pa.schema((field.name, _TYPES.get(field.name, pa.string())) for field in fields(Record))


class RecordWriter:
    """Appends records to a JSONL file, one line each, at every call; what a full disk does not take waits for the next.

    A line torn by a kill is the last one and is dropped when the file is opened again.
    """

    def __init__(self, path: Path, notify: Callable[[str], None] = print, **context: Any) -> None:
        """Args.

        path: the file.
        notify: gets one sentence when the disk is full, once.
        context: fields of `Record` that every record of this writer carries.
        """
        self.path, self.notify, self.context = path, notify, context
        _drop_torn_line(path)
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def write(self, records: Iterable[Record]) -> list[Record]:
        """Writes the records, with this writer's context in the fields that a record leaves empty; returns those."""
        written, lines = [], []
        for record in records:
            row = asdict(record)
            row.update({key: value for key, value in self.context.items() if not row[key]})
            written.append(Record(**row))
            line = json.dumps({k: _plain(v) for k, v in row.items() if v is not None and v != ""}) + "\n"
            lines.append(line.encode())
        was_waiting, self._waiting = bool(self._waiting), self._waiting + b"".join(lines)
        try:
            self._flush()
        except OSError as error:
            if not was_waiting:
                self.notify(f"warning: {self.path} takes no more numbers for now ({error.strerror}); they are kept")
        return written

    def truncate_after(self, samples_seen: int) -> None:
        """Forgets what was written past `samples_seen`: a resumed run writes those records again."""
        self._flush()
        keep = [record for record in read_records(self.path) if record.samples_seen <= samples_seen]
        self._file.close()
        fresh = self.path.with_suffix(".tmp")
        fresh.unlink(missing_ok=True)
        writer = RecordWriter(fresh)
        writer.write(keep)
        writer.close()
        fresh.replace(self.path)
        self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        """Writes everything to the disk and closes; reports what the disk still does not accept."""
        try:
            self._flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            num_lost = self._waiting.count(b"\n")
            self.notify(f"warning: {self.path} lacks the last {num_lost} numbers of the run ({error.strerror})")
        self._file.close()
        _drop_torn_line(self.path)

    def _flush(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]


def read_records(path: Path) -> list[Record]:
    """Reads a JSONL or parquet file of records; NaN and infinity are restored; unknown columns are ignored."""
    names = {field.name for field in fields(Record)}
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Record(**{k: _number(k, v) for k, v in row.items() if k in names}) for row in rows]


def metric_name(record: Record) -> str:
    """The name of a number in loggers and in `trainer.callback_metrics`: train/loss, cifar10/acc1, ema/cifar10/acc1.

    The validation loss has one name whatever its number of candidates, which the record's own name holds. A variant or
    a group follows the task: cifar10/contextless/acc1. Which group is the worst may change, so it is not in the name.
    """
    what = {"learning_rate": "lr", "gradient_norm": "grad_norm"}.get(record.what, record.what)
    what = "loss" if what.startswith("val_loss_") else what
    group = "" if what.startswith("worst_group") else record.group
    return "/".join(part for part in (record.weights, record.task or "train", record.variant, group, what) if part)


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per record, one column per field."""
    return pd.DataFrame([asdict(record) for record in records], columns=[field.name for field in fields(Record)])


def write_parquet(records: Iterable[Record], path: Path) -> None:
    """Writes records as parquet, complete or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist([asdict(record) for record in records], schema=SCHEMA), temporary)
    temporary.replace(path)


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: they travel as their names."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(key: str, value: Any) -> Any:
    """A float field that JSON wrote as a whole number or as a name is a float again, a list a tuple."""
    if key == "per_class":
        return None if value is None else tuple(value)
    return float(value) if key in _REAL and value is not None else value


def _drop_torn_line(path: Path) -> None:
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
