"""Images that are files of their own, with captions from a list or from a text file beside them.

Their list is an Arrow table of `path` and, where they are listed, `captions`; what was left out and the fingerprint are
its metadata. It is made once and kept in the index folder: other ranks and later starts map it.
"""

import hashlib
import json
import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.layout import BadSample, Layout, Problem, ProblemList, RawSample, lost_by_cause
from clip_lightning.data.layouts.tar_index import decoded
from clip_lightning.data.sources import cache_folder
from clip_lightning.errors import DataError

_FIRST_PATHS = 64  # that are looked for before a table is used
_PROBLEMS, _FINGERPRINT = b"problems", b"fingerprint"


class FileRows(Layout):
    """One row per image file; Arrow holds the table, so that processes share it."""

    def __init__(self, where: str, folder: Path, table: pa.Table, caption_extensions: Sequence[str] = ()) -> None:
        """Args:
        where: the file or folder the rows come from, for messages.
        folder: what paths are relative to.
        table: of `file_table`.
        caption_extensions: of the file beside an image; without a column `captions`, the first that exists is read, one
            caption per line that is not empty.
        """
        self.where, self.folder, self.caption_extensions = where, folder, caption_extensions
        self.paths = table["path"].combine_chunks()
        self.texts = table["captions"].combine_chunks() if "captions" in table.column_names else None
        self.problems = ListedProblems(where, table)
        self._fingerprint = table.schema.metadata[_FINGERPRINT].decode()
        self.num_samples = len(self.paths)
        self.shard_sizes = np.array([len(self.paths)], np.int64)

    def read(self, sample_id: int) -> RawSample:
        """The image file's bytes and its captions."""
        return RawSample(read_file(self._path(sample_id)), self.captions(sample_id))

    def captions(self, sample_id: int) -> list[str]:
        """The captions of a row."""
        if self.texts is not None:
            texts: list[str] = self.texts[sample_id].as_py()
            return texts
        image = self._path(sample_id)
        for extension in self.caption_extensions:
            if (beside := image.with_suffix(f".{extension}")).exists():
                lines = decoded(read_file(beside, "caption")).splitlines()
                if found := [line.strip() for line in lines if line.strip()]:
                    return found
                raise BadSample("empty caption")
        raise BadSample("missing caption")

    def name_of(self, sample_id: int) -> Problem:
        """The path of the image."""
        return Problem(self.where, self.paths[sample_id].as_py(), "")

    def fingerprint(self) -> str:
        """Of the paths below the folder and the captions that are listed."""
        return self._fingerprint

    def _path(self, sample_id: int) -> Path:
        return self.folder / self.paths[sample_id].as_py()


class ListedProblems(ProblemList):
    """What a list of images left out, read from its table when it is iterated."""

    def __init__(self, where: str, table: pa.Table) -> None:
        """Args: where: the shard that is named. table: of `file_table`."""
        self._where, self._schema = where, table.schema
        problems = self._read()
        self._num, self._lost = len(problems), lost_by_cause(problems)

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._read())

    def _read(self) -> list[Problem]:
        fields = json.loads(self._schema.metadata[_PROBLEMS])
        return [Problem(*one)._replace(shard=self._where) for one in fields]

    def lost_by_cause(self) -> Counter[str]:
        """Lost samples by cause."""
        return Counter(self._lost)

    def of_shards(self) -> list[Problem]:
        """None: each problem is that of a row or a file."""
        return []


def file_table(
    paths: Sequence[str], problems: Sequence[Problem], captions: Sequence[Sequence[str]] | None = None
) -> pa.Table:
    """The table of a list of images.

    Args:
        paths: of the images, relative to their folder.
        problems: what is left out.
        captions: the texts of each image; None where they are in files of their own.
    """
    columns = {"path": pa.array(paths, pa.string())}
    if captions is not None:
        columns["captions"] = pa.array(captions, pa.list_(pa.string()))
    state = hashlib.sha256()
    for column in columns.values():
        for start in range(0, len(column), 1 << 16):
            state.update("\0".join(map(str, column.slice(start, 1 << 16).to_pylist())).encode())
    return pa.table(columns).replace_schema_metadata(
        {_PROBLEMS: json.dumps(problems), _FINGERPRINT: state.hexdigest()[:16]}
    )


def kept_table(
    config: DataConfig,
    name: str,
    make: Callable[[], pa.Table],
    is_current: Callable[[dict[bytes, bytes]], bool] = lambda _: True,
) -> pa.Table:
    """The table of that name in the index folder, memory-mapped; made where it is missing, damaged or out of date.

    Args:
        make: makes it, with metadata. Where the index folder cannot be written it is made at every start.
        is_current: whether the metadata of a table belongs to the present state of the data.
    """
    kept = cache_folder(config.index_folder) / "index" / f"{name}.arrow"
    try:
        table = map_arrow(os.open(kept, os.O_RDONLY))
        if is_current(table.schema.metadata):
            return table
    except (OSError, ValueError):  # missing or damaged
        pass
    table = make()
    temporary = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        temporary.replace(kept)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        return table
    return map_arrow(os.open(kept, os.O_RDONLY))


def read_file(path: Path, what: str = "image") -> bytes:
    """A file's bytes.

    Raises: BadSample where it is missing or empty.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise BadSample(f"missing {what} file", str(path)) from error
    with os.fdopen(descriptor, "rb") as file:
        content = file.read()
    if not content:
        raise BadSample(f"empty {what}", str(path))
    return content


class Columns(NamedTuple):
    """The names of the columns that hold images and captions."""

    image: str
    caption: str


def columns_of(names: list[str], config: DataConfig, where: str) -> Columns:
    """The column of images and the column of captions, the first of those that are wanted.

    Args: names: of all columns. where: the file, for messages.
    Raises: DataError where there is none.
    """
    found = []
    for key, wanted in (("data.image_keys", config.image_keys), ("data.caption_keys", config.caption_keys)):
        name = next((name for name in wanted if name in names), None)
        if name is None:
            raise DataError(f"{where} has no column {' or '.join(wanted)} ({key}); it has {', '.join(names)}.")
        found.append(name)
    return Columns(*found)


def check_paths(where: str, folder: Path, paths: pa.Array) -> None:
    """Looks for the first images of a table.

    Args: where: the table. folder: what its paths are relative to.
    Raises: DataError where none of them exists.
    """
    first = [path for path in paths.slice(0, _FIRST_PATHS).to_pylist() if path]
    if not first or any((folder / path).exists() for path in first):
        return
    if "://" in first[0]:
        raise DataError(f"{where} holds URLs ({first[0]}); download the images first, for example with img2dataset.")
    missing = f"none of the first {len(first)} exists: {first[0]}"
    raise DataError(f"{where}: paths are relative to the table's folder ({folder}); {missing}")


def map_arrow(descriptor: int) -> pa.Table:
    """The table of an Arrow file or stream, memory-mapped; closes the descriptor."""
    try:
        buffer = pa.py_buffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)
    is_file = buffer.slice(0, 6).to_pybytes() == b"ARROW1"
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(pa.BufferReader(buffer)).read_all()
