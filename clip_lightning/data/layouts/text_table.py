"""CSV, TSV and JSONL with the path of an image and its caption in each row; paths are relative to the file's folder.

A table is parsed once and kept as Arrow in the index folder. In a .csv, fields may be in double quotes; in a .tsv a
quote is text, unless `data.quotes` says otherwise. A quote that is never closed would swallow all rows after it: it is
an error with its line.
"""

import csv
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.images.headers import OTHER_SUFFIXES, READABLE_SUFFIXES
from clip_lightning.data.layouts.file_rows import FileRows, check_paths, columns_of, file_table, kept_table
from clip_lightning.data.layouts.layout import BadSample, Layout, Problem, digest
from clip_lightning.data.layouts.tar_index import texts_of
from clip_lightning.data.sources import Source, list_sources
from clip_lightning.errors import DataError

_VERSION = "3"  # goes up with every change of what is read from a table
_END = "\x00end of the table\x00"  # a line after the last: a quote that is still open swallows it
_IMAGE_SUFFIXES = READABLE_SUFFIXES | OTHER_SUFFIXES


class _Row(NamedTuple):
    """A row of a table: the line it begins in, and its values."""

    line: int
    path: Any
    caption: Any


def build_table(config: DataConfig, path: str) -> Layout:
    """A CSV, TSV or JSONL file with a path and a caption in each row.

    Raises: DataError where it is missing, cannot be parsed, has no column of that name, or names images that are not
        there.
    """
    sources = list_sources(path, Path(path).suffix or ".csv", how_to_get=config.how_to_get)
    if len(sources) != 1 or sources[0].is_remote:
        raise DataError(f"data.path={path} must be one local file for data.kind=table.")
    (source,) = sources
    keys = digest(_VERSION, str(config.quotes), *config.image_keys, "", *config.caption_keys)
    table = kept_table(config, digest(*map(str, source), keys), lambda: parse(source, config))
    folder = Path(source.url).parent
    check_paths(source.url, folder, table["path"])
    return FileRows(source.url, folder, table)


def parse(source: Source, config: DataConfig) -> pa.Table:
    """The rows of a text table, with their captions.

    Raises: DataError where a quote is never closed, or a column is missing.
    """
    is_json = source.name.endswith((".jsonl", ".json", ".ndjson"))
    problems: list[Problem] = []
    paths, captions = [], []
    for row in (_json_rows if is_json else _csv_rows)(source, config, problems):
        try:
            texts = texts_of(_valid(row.caption))
            image = _valid(row.path)
            if not isinstance(image, str) or not image:
                raise BadSample("missing image")
            if not texts:
                raise BadSample("missing caption" if row.caption is None else "empty caption")
        except BadSample as bad:
            problems.append(Problem("", f"line {row.line}", bad.cause))
            continue
        paths.append(image)
        captions.append(texts)
    return file_table(paths, problems, captions)


def _valid(value: Any) -> Any:
    """A value as it is; raises BadSample where it is text that was not UTF-8."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise BadSample("caption is not UTF-8", str(error)) from error
    return value


def _csv_rows(source: Source, config: DataConfig, problems: list[Problem]) -> Iterator[_Row]:
    is_tsv = source.name.lower().endswith((".tsv", ".tab"))
    quoted = config.quotes if config.quotes is not None else not is_tsv
    # A row that is not UTF-8 must not stop the others: its bytes come as surrogates, which `_valid` refuses.
    with Path(source.url).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header = file.readline()
        if header.startswith(("\udcff\udcfe", "\udcfe\udcff")):
            raise DataError(f"{source.url} is UTF-16; save it as UTF-8.")
        delimiter = "\t" if "\t" in header else ","
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        columns = columns_of(names, config, source.url)
        image, caption = names.index(columns.image), names.index(columns.caption)
        rows = chain(file, [_END])
        reader = csv.reader(rows, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
        first_quoted = None
        for line, num_lines, row in _numbered(reader, source):
            if quoted and num_lines > 1 and (found := _newline_problem(row, len(names), image, delimiter)):
                problems.append(found._replace(name=f"line {line}", num=num_lines if found.num else 0))
                if found.num:
                    continue
            if len(row) != len(names):
                problems.append(Problem("", f"line {line}", "damaged row", num_lines))
                continue
            if is_tsv and first_quoted is None and len(row[caption]) > 1 and row[caption][0] == row[caption][-1] == '"':
                first_quoted = line
            yield _Row(line, row[image], row[caption])
    if first_quoted is not None and config.quotes is None:
        hint = "write data.quotes=true if its fields are in quotes"
        problems.append(Problem("", f"line {first_quoted}", "quotes read as text", 0, hint))


def _numbered(reader: Any, source: Source) -> Iterator[tuple[int, int, list[str]]]:
    """Each row that is not empty, with its first line in the file (the header is line 1) and its number of lines."""
    before = 0
    try:
        for row in reader:
            line, num_lines, before = before + 2, reader.line_num - before, reader.line_num
            if row == [_END]:
                return
            if row and row[-1].endswith(_END):
                raise DataError(f"{source.url}: a quote in the row of line {line:,} is never closed; {_QUOTES}")
            if row:
                yield line, num_lines, row
    except csv.Error as error:
        raise DataError(f"{source.url}: the row of line {before + 2:,} cannot be read ({error}); {_QUOTES}") from error


_QUOTES = "close it, or write data.quotes=false to read quotes as text."


def _newline_problem(row: list[str], num_columns: int, image: int, delimiter: str) -> Problem | None:
    """What is wrong with a row of several lines: num is 0 where it may be intended, 1 where it swallowed other rows."""
    problem = None
    for field in row:
        if delimiter in field and ("\n" in field or "\r" in field):
            for line in field.splitlines():
                cells = line.split(delimiter)
                if len(cells) == num_columns and cells[image].strip('"').lower().rpartition(".")[2] in _IMAGE_SUFFIXES:
                    hint = "close the quote, or write data.quotes=false to read quotes as text"
                    return Problem("", "", "rows inside a quoted field", 1, hint)
            problem = Problem("", "", "quoted field with a newline and a delimiter", 0)
    return problem


def _json_rows(source: Source, config: DataConfig, problems: list[Problem]) -> Iterator[_Row]:
    columns = None
    with Path(source.url).open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError):
                problems.append(Problem("", f"line {number}", "damaged row"))
                continue
            columns = columns or columns_of(list(row), config, source.url)
            yield _Row(number, row.get(columns.image), row.get(columns.caption))
