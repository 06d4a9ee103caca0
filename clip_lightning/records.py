"""Leaf: the one typed row for every number that the project reports, its writer and its reader.

A record carries what its number was computed from, so that figures and scaling fits need nothing but records. Values
are fractions of 1 (never percent), seconds, samples, or nats; `what` names the quantity in the field's words.
"""

import json
import math
import os
from collections.abc import Iterable
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
        prompts: the set of templates, or empty.
        weights: which of the model's weights were measured: empty for those of training, `ema` for their average.
        low, high: the ends of its 95 % interval, where it has one.
        n: how many images or pairs it was counted over, where it was counted.
        chance: what guessing gives, where that is known.
        samples_seen: how far training was.
        run, model, data, science, precision, versions: what produced it.
    """

    what: str
    value: float
    task: str = ""
    split: str = ""
    prompts: str = ""
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


_WHOLE, _REAL = ("n", "samples_seen"), ("value", "low", "high", "chance")
SCHEMA = pa.schema(
    (field.name, pa.int64() if field.name in _WHOLE else pa.float64() if field.name in _REAL else pa.string())
    for field in fields(Record)
)


class RecordWriter:
    """Appends records to a JSONL file, one line each, flushed with every call.

    A line torn by a kill is the last one and is dropped when the file is opened again.
    """

    def __init__(self, path: Path, **context: Any) -> None:
        """Args: path: the file. context: fields of `Record` that every record of this writer carries."""
        self.path = path
        self.context = context
        _drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, records: Iterable[Record]) -> list[Record]:
        """Writes the records, with this writer's context filled in where a record leaves it empty; returns those."""
        written = []
        for record in records:
            row = asdict(record)
            row.update({key: value for key, value in self.context.items() if not row[key]})
            written.append(Record(**row))
            self._file.write(json.dumps({k: _plain(v) for k, v in row.items() if v is not None and v != ""}) + "\n")
        self._file.flush()
        return written

    def truncate_after(self, samples_seen: int) -> None:
        """Forgets what was written past `samples_seen`: a resumed run writes those records again."""
        keep = [record for record in read_records(self.path) if record.samples_seen <= samples_seen]
        self._file.close()
        fresh = self.path.with_suffix(".tmp")
        fresh.unlink(missing_ok=True)
        writer = RecordWriter(fresh)
        writer.write(keep)
        writer.close()
        fresh.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Flushes to the disk and closes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read_records(path: Path) -> list[Record]:
    """Reads a JSONL or parquet file of records; NaN and infinity come back as such; unknown columns are left out."""
    names = {field.name for field in fields(Record)}
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Record(**{k: _number(k, v) for k, v in row.items() if k in names}) for row in rows]


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
    """A float field that JSON wrote as a whole number or as a name is a float again."""
    return float(value) if key in _REAL and value is not None else value


def _drop_torn_line(path: Path) -> None:
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
