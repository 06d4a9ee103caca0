import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_lightning.records import Record, RecordWriter, read_records, to_frame, write_parquet

texts = st.text(max_size=12)
numbers = st.floats(allow_nan=True, allow_infinity=True)
records = st.builds(
    Record,
    what=st.text(min_size=1, max_size=12),
    value=numbers,
    task=texts,
    low=st.none() | st.floats(allow_nan=False),
    n=st.none() | st.integers(0, 2**40),
    samples_seen=st.integers(0, 2**50),
    per_class=st.none() | st.lists(st.none() | st.floats(0, 1), min_size=1).map(tuple),
)


def equal(left: list[Record], right: list[Record]) -> bool:
    return repr(left) == repr(right)  # NaN is not equal to itself, its name is


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(rows=st.lists(records, max_size=8))
def test_records_are_read_as_they_were_written(rows: list[Record], tmp_path_factory: object) -> None:
    path = tmp_path_factory.mktemp("records") / "metrics.jsonl"  # type: ignore[attr-defined]
    writer = RecordWriter(path)
    written = writer.write(rows)
    writer.close()
    assert equal(written, rows)
    assert equal(read_records(path), rows)
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    write_parquet(rows, path.with_suffix(".parquet"))
    assert equal(read_records(path.with_suffix(".parquet")), rows)


def test_writer_fills_in_its_context_and_nothing_else(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "metrics.jsonl", run="r1", model="tiny")
    (record,) = writer.write([Record(what="loss", value=1.5, model="other")])
    assert (record.run, record.model) == ("r1", "other")


def test_a_line_torn_by_a_kill_is_dropped_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    RecordWriter(path).write([Record(what="loss", value=1.0), Record(what="loss", value=2.0)])
    whole = path.read_bytes()
    for cut in range(len(whole) // 2 + 1, len(whole)):
        path.write_bytes(whole[:cut])
        RecordWriter(path).write([Record(what="loss", value=3.0)])
        assert [record.value for record in read_records(path)] == [1.0, 3.0]


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Limits the file to ten more bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_records_wait_on_a_full_disk_and_are_written_when_there_is_room(tmp_path: Path) -> None:
    notices: list[str] = []
    writer = RecordWriter(tmp_path / "metrics.jsonl", notices.append)
    writer.write([Record(what="loss", value=1.0)])
    with full_disk(writer.path):
        for value in (2.0, 3.0):
            writer.write([Record(what="loss", value=value)])
    (sentence,) = notices
    assert "takes no more numbers for now (File too large); they are kept" in sentence
    writer.write([Record(what="loss", value=4.0)])
    writer.close()
    assert [record.value for record in read_records(writer.path)] == [1.0, 2.0, 3.0, 4.0]


def test_a_run_that_ends_on_a_full_disk_reports_what_is_lost_and_keeps_complete_lines(tmp_path: Path) -> None:
    notices: list[str] = []
    writer = RecordWriter(tmp_path / "metrics.jsonl", notices.append)
    writer.write([Record(what="loss", value=1.0)])
    with full_disk(writer.path):
        writer.write([Record(what="loss", value=2.0)])
        writer.close()
    assert "lacks the last 1 numbers" in notices[-1]
    assert [record.value for record in read_records(writer.path)] == [1.0]


def test_a_resumed_run_drops_the_records_that_it_writes_again(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "metrics.jsonl")
    writer.write([Record(what="loss", value=float(seen), samples_seen=seen) for seen in (100, 200, 300)])
    writer.truncate_after(200)
    writer.write([Record(what="loss", value=math.inf, samples_seen=300)])
    assert [record.value for record in read_records(writer.path)] == [100.0, 200.0, math.inf]


def test_frame_has_a_column_per_field_even_when_empty() -> None:
    assert {"what", "value", "samples_seen", "chance"} <= set(to_frame([]).columns)


def test_a_file_without_the_newer_fields_is_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"what": "acc1", "value": 0.5, "task": "shape", "samples_seen": 8}\n')
    assert read_records(tmp_path / "metrics.jsonl") == [Record(what="acc1", value=0.5, task="shape", samples_seen=8)]
    row = pa.table({"what": ["acc1"], "value": [0.5], "task": ["shape"], "samples_seen": [8]})
    pq.write_table(row, tmp_path / "records.parquet")
    assert read_records(tmp_path / "records.parquet") == read_records(tmp_path / "metrics.jsonl")
