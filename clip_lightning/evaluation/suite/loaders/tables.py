"""Test sets in tables: a CSV or JSON-lines file beside the images, and parquet files with the images inside."""

import csv
import json
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError
from clip_lightning.evaluation.suite.loaders.found import Found, Image, index_of, listed

IMAGE_COLUMNS = ("image", "img", "webp", "jpg", "png", "jpeg")
LABEL_COLUMNS = ("label", "labels", "cls", "fine_label", "class", "label_idx")


def table(
    folder: Path,
    keys: Sequence[str] | None,
    *,
    file: str,
    image: str = "{path}",
    label: str = "label",
    label_pattern: str = "(.*)",
    separator: str = ",",
    keep: Mapping[str, str] | None = None,
    classes: Mapping[str, str] | None = None,
) -> Found:
    """A table with a row per image: CSV with a header, or JSON lines.

    Args:
        folder: of the data set.
        keys: class keys; None where the labels in the table are the keys.
        file: the table.
        image: the image's path, of the columns of the table.
        label: the column with the class: a key, or a number into `keys`.
        label_pattern: regular expression whose first group, in that column, is the class.
        separator: of the CSV.
        keep: columns and the value that a row must have to count.
        classes: another table with the class keys: `file`, `separator`, `key` and `name` are its columns.
    Raises: DataError.
    """
    rows = _rows(folder / file, separator)
    if keep:
        rows = [row for row in rows if all(row.get(key) == value for key, value in keep.items())]
    if not rows:
        raise DataError(f"{folder / file} lists no image; copy it again.")
    if label not in rows[0]:
        raise DataError(f"{folder / file} has no column '{label}'; its columns are {', '.join(rows[0])}.")
    names: Sequence[str] = ()
    if classes:
        content = _rows(folder / classes["file"], classes.get("separator", ","))
        keys, names = [row[classes["key"]] for row in content], [row[classes["name"]] for row in content]
    found = [re.match(label_pattern, row[label]) for row in rows]
    values = [match[1] if match else "" for match in found]
    labels, keys = as_labels(values, keys, f"{folder / file}: the label")
    return listed([folder / image.format(**row) for row in rows], labels, keys, names=names)


def _rows(path: Path, separator: str) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    if path.suffix == ".jsonl":
        documents = [json.loads(line) for line in text.splitlines() if line.strip()]
        return [{key: str(value) for key, value in document.items()} for document in documents]
    return [
        {str(key).strip(): str(value).strip() for key, value in row.items()}
        for row in csv.DictReader(text.splitlines(), delimiter=separator)
    ]


def as_labels(values: Sequence[Any], keys: Sequence[str] | None, what: str) -> tuple[np.ndarray, list[str]]:
    """Labels int64 [n] and the keys, from numbers into the keys or from keys themselves.

    Without keys, texts are keys, sorted; numbers stay numbers, of classes whose keys are unknown: none are returned.

    Raises: DataError where a value is neither a key nor a number of one.
    """
    texts = [str(value).strip() for value in values]
    known = {key.casefold() for key in keys or ()}
    if all(text.isdecimal() for text in texts) and not all(text.casefold() in known for text in texts):
        numbers = np.array([int(text) for text in texts], dtype=np.int64)
        if keys is not None and numbers.max() >= len(keys):
            raise DataError(f"{what} {numbers.max()} is out of range; labels go from 0 to {len(keys) - 1}.")
        return numbers, list(keys or ())
    keys = sorted(set(texts)) if keys is None else list(keys)
    return index_of(keys, texts, what), keys


class _Column:
    """Cells of one column of parquet or arrow files, by row.

    Arrow files are mapped. Of parquet files, groups of rows are read whole, and the last two are kept.
    """

    def __init__(self, files: Sequence[Path], name: str) -> None:
        import pyarrow.parquet as pq

        self.name = name
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        for path in files:
            if path.suffix == ".arrow":
                self._groups.append((path, 0))
                sizes.append(_arrow(path).num_rows)
                continue
            metadata = pq.ParquetFile(path).metadata
            for group in range(metadata.num_row_groups):
                self._groups.append((path, group))
                sizes.append(metadata.row_group(group).num_rows)
        self._ends = np.cumsum(sizes)
        self._kept: dict[int, Any] = {}
        self._lock = threading.Lock()

    def cell(self, row: int) -> Any:
        """The value of a row, as a Python object. Raises BadSample where the file cannot be read."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        with self._lock:
            if number not in self._kept:
                while len(self._kept) > 1:
                    del self._kept[next(iter(self._kept))]
                self._kept[number] = self._read(*self._groups[number])
            column = self._kept[number]
        return column[row - (int(self._ends[number - 1]) if number else 0)].as_py()

    def _read(self, path: Path, group: int) -> Any:
        import pyarrow.parquet as pq

        try:
            if path.suffix == ".arrow":
                return _arrow(path).column(self.name)
            return pq.ParquetFile(path).read_row_group(group, columns=[self.name]).column(0)
        except (OSError, ValueError) as error:
            raise BadSample("damaged image", f"{path.name}: {error}") from error


def _arrow(path: Path) -> Any:
    """A file that the package datasets wrote to its cache, mapped."""
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _content(value: Any, row: int) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not content:
        raise BadSample("empty image", f"row {row}")
    return bytes(content)


class _ParquetImages:
    def __init__(self, files: Sequence[Path], column: str) -> None:
        self.column = _Column(files, column)

    def __call__(self, k: int) -> Image:
        return _content(self.column.cell(k), k)


class _CandidateImages:
    """Image k is a candidate: a place in the list of images of a row."""

    def __init__(self, files: Sequence[Path], column: str, places: Sequence[tuple[int, int]]) -> None:
        self.column, self.places = _Column(files, column), places

    def __call__(self, k: int) -> Image:
        row, place = self.places[k]
        return _content(self.column.cell(row)[place], row)


def winogavil(folder: Path, keys: Sequence[str] | None, *, patterns: Sequence[str], least: int) -> Found:
    """WinoGAViL as the hub has it: a row per cue with its candidates, the correct ones, and the candidates' images.

    Each cue is a class of its own and each candidate of each row an image: labels are bool [n, cues], and the group of
    an image is the number of its cue. Names are the cues with their article, in lower case, as DataComp writes them.

    Args:
        folder: of the data set.
        keys: None.
        patterns: of the parquet or arrow files, tried in order.
        least: candidates that a row has to have (DataComp's main metric counts rows of 10 and 12).
    """
    import pyarrow.parquet as pq

    files = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])
    if not files:
        raise DataError(f"{folder} has no parquet or arrow file of the test split.")
    columns = ["cue", "candidates", "associations"]
    tables = [
        _arrow(path).select(columns) if path.suffix == ".arrow" else pq.read_table(path, columns=columns)
        for path in files
    ]
    rows = [row for table in tables for row in table.to_pylist()]
    kept = [k for k, row in enumerate(rows) if len(row["candidates"]) >= least]
    if not kept:
        raise DataError(f"{folder} has no row of {least} or more candidates; copy the file again.")
    names = [f"{'An' if rows[k]['cue'][:1].lower() in 'aeiou' else 'A'} {rows[k]['cue'].lower()}" for k in kept]
    places = [(row, place) for row in kept for place in range(len(rows[row]["candidates"]))]
    groups = np.repeat(np.arange(len(kept)), [len(rows[row]["candidates"]) for row in kept])
    labels = np.zeros((len(places), len(kept)), dtype=bool)
    labels[np.arange(len(places)), groups] = [
        rows[row]["candidates"][place] in rows[row]["associations"] for row, place in places
    ]
    read = _CandidateImages(files, "candidate_images", places)
    return Found(labels, read, [str(k) for k in kept], names, num_listed=len(places), groups=groups)


def parquet(
    folder: Path,
    keys: Sequence[str] | None,
    *,
    patterns: Sequence[str],
    image: str = "",
    label: str = "",
) -> Found:
    """Parquet files as Hugging Face writes them: a column of images (bytes inside) and one of classes.

    Names of the classes come from the schema's metadata (`ClassLabel`), or are the labels where these are text.

    Args:
        folder: of the data set.
        keys: class keys; used where the file has no names of its own.
        patterns: of the files, tried in order; the first that any file matches is taken.
        image: the column of images; by default the first of `IMAGE_COLUMNS`.
        label: the column of classes; by default the first of `LABEL_COLUMNS`.
    Raises: DataError.
    """
    import pyarrow.parquet as pq

    files = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])
    if not files:
        raise DataError(f"{folder} has no parquet file of a test split.")
    try:
        schema = pq.read_schema(files[0])
        image = image or next((name for name in IMAGE_COLUMNS if name in schema.names), "")
        label = label or next((name for name in LABEL_COLUMNS if name in schema.names), "")
        if not image or not label:
            raise DataError(
                f"{files[0]} has no column of images and classes; its columns are {', '.join(schema.names)}."
            )
        values = [value for path in files for value in pq.read_table(path, columns=[label]).column(0).to_pylist()]
        images = _ParquetImages(files, image)
    except (OSError, ValueError) as error:
        raise DataError(f"{files[0].parent}: a parquet file is damaged ({error}); copy it again.") from error
    if not values:
        raise DataError(f"{files[0]} has no rows; copy it again.")
    names = _class_names(schema.metadata, label)
    if any(isinstance(value, list) for value in values):
        numbers = np.zeros((len(values), len(names or keys or ())), dtype=bool)
        for row, value in enumerate(values):
            numbers[row, value] = True
        return Found(numbers, images, names or list(keys or ()), names, num_listed=len(values))
    labels, found_keys = as_labels(values, names or keys, f"{files[0]}: the label")
    return Found(labels, images, found_keys, names, num_listed=len(values))


def _class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str]:
    content = (metadata or {}).get(b"huggingface")
    if not content:
        return []
    feature = json.loads(content).get("info", {}).get("features", {}).get(column, {})
    feature = feature.get("feature", feature) if isinstance(feature, dict) else {}
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []
