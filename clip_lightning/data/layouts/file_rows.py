"""Images that are files of their own, with captions from a list or from a text file beside them."""

import hashlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.layout import BadSample, Layout, Problem, RawSample
from clip_lightning.data.layouts.tar_index import decoded
from clip_lightning.errors import DataError

_FIRST_PATHS = 64  # that are looked for before a table is used


class FileRows(Layout):
    """One row per image file; Arrow holds the table, so that processes share it."""

    def __init__(
        self,
        where: str,
        folder: Path,
        paths: pa.Array,
        captions: pa.ListArray | None,
        problems: Sequence[Problem] = (),
        caption_extensions: Sequence[str] = (),
    ) -> None:
        """Args:
        where: the file or folder the rows come from, for messages.
        folder: what paths are relative to.
        paths: strings, one per image.
        captions: the texts of each; None reads the file beside the image, one caption per line that is not empty.
        caption_extensions: of the file beside, the first that exists is read.
        """
        self.where, self.folder, self.paths, self.texts = where, folder, paths, captions
        self.caption_extensions = caption_extensions
        self.problems = problems
        self.num_samples = len(paths)
        self.shard_sizes = np.array([len(paths)], np.int64)

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
        state = hashlib.sha256()
        for column in (self.paths, self.texts):
            if column is not None:
                for start in range(0, len(column), 1 << 16):
                    state.update("\0".join(map(str, column.slice(start, 1 << 16).to_pylist())).encode())
        return state.hexdigest()[:16]

    def _path(self, sample_id: int) -> Path:
        return self.folder / self.paths[sample_id].as_py()


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
