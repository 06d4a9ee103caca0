"""Parquet and Hugging Face datasets on disk, with images inside or with paths to them.

Arrow files are memory-mapped. A parquet file can only be unpacked by complete row groups, so each row group is a shard
that is unpacked once into the cache (`data.cache`) and read from there by every process.
"""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.file_rows import Columns, check_paths, columns_of, map_arrow, read_file
from clip_lightning.data.layouts.layout import BadSample, Layout, Problem, RawSample, digest, in_sub_folders
from clip_lightning.data.layouts.tar_index import decoded, texts_of
from clip_lightning.data.remote.cache import ShardCache
from clip_lightning.data.sources import Source, list_sources, open_store
from clip_lightning.errors import DataError

_log = logging.getLogger(__name__)
_WINDOW_SHARDS, _WINDOW_ROWS = 32, 1 << 17  # shards of a shuffle window in the cache, and rows that it has at least
_MOST_OPEN = 256  # tables that a process keeps mapped


class _Group(NamedTuple):
    """A shard: an Arrow file (`number` < 0), or a row group of a parquet file."""

    source: Source
    number: int
    num_rows: int
    size: int


def build_arrow(config: DataConfig, path: str) -> Layout:
    """Parquet files, or a Hugging Face dataset saved to disk, at `path`.

    Raises: DataError where there is no such file, or it has no column of that name.
    """
    cache = ShardCache(config.cache)
    sources = _huggingface_files(path)
    if not sources:
        groups, columns = _parquet_groups(list_sources(path, ".parquet", how_to_get=config.how_to_get), config)
        return ArrowTables(groups, columns, cache, in_sub_folders(path, ".parquet"))
    groups = []
    for source in sources:
        table = map_arrow(cache.open(source) if source.is_remote else os.open(source.url, os.O_RDONLY))
        groups.append(_Group(source, -1, table.num_rows, source.size))
    return ArrowTables(groups, columns_of(table.column_names, config, path), cache)


class ArrowTables(Layout):
    """Rows of Arrow tables that hold the images (bytes, Hugging Face's {bytes, path}, or paths)."""

    def __init__(
        self, groups: list[_Group], columns: Columns, cache: ShardCache, problems: Sequence[Problem] = ()
    ) -> None:
        """Args: cache: where row groups of parquet files are unpacked. problems: what is left out."""
        self.problems = problems
        self.groups, self.columns, self.cache = groups, columns, cache
        self.shard_sizes = np.array([group.num_rows for group in groups], np.int64)
        self._ends = np.cumsum(self.shard_sizes)
        self.num_samples = int(self._ends[-1])
        self.remote = any(group.number >= 0 or group.source.is_remote for group in groups)
        if self.remote:
            self.largest_download = max(group.size + group.source.size * group.source.is_remote for group in groups)
            self.window_shards = max(_WINDOW_SHARDS, -(-_WINDOW_ROWS * len(groups) // max(self.num_samples, 1)))
        self._open: OrderedDict[int, pa.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, sample_id: int) -> RawSample:
        """The image and captions of a row."""
        shard, row = self._place(sample_id)
        table = self._table(shard)
        value: Any = table[self.columns.image][row].as_py()
        path: str | None = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if value is None or isinstance(value, str):
            if not (path := value or path):
                raise BadSample("missing image")
            value = read_file(Path(self.groups[shard].source.url).parent / path)
        if not isinstance(value, bytes):
            raise BadSample("not an image", f"column {self.columns.image} holds {type(value).__name__}")
        return RawSample(value, self.captions(sample_id))

    def captions(self, sample_id: int) -> list[str]:
        """The captions of a row."""
        shard, row = self._place(sample_id)
        value = self._table(shard)[self.columns.caption][row].as_py()
        texts = texts_of(decoded(value) if isinstance(value, bytes) else value)
        if not texts:
            raise BadSample("missing caption" if value is None else "empty caption")
        return texts

    def name_of(self, sample_id: int) -> Problem:
        """The file, and the row in its row group."""
        shard, row = self._place(sample_id)
        group = self.groups[shard]
        return Problem(group.source.url, f"row {row}" + (f" of group {group.number}" if group.number >= 0 else ""), "")

    def shard_of(self, sample_id: int) -> str:
        """The file, and the row group in it."""
        group = self.groups[self._place(sample_id)[0]]
        return group.source.url + (f" (row group {group.number})" if group.number >= 0 else "")

    def newest_download(self) -> float:
        """When the cache last grew."""
        return self.cache.newest_download() if self.remote else 0.0

    def fingerprint(self) -> str:
        """Of the files' names and sizes and the rows in each."""
        return digest(*(f"{group.source.name} {group.source.size} {group.num_rows}" for group in self.groups))

    def prefetch(self, shard: int) -> None:
        """Downloads a remote file and unpacks a row group; a failure is raised by the read that needs it."""
        try:
            os.close(self._descriptor(self.groups[shard]))
        except DataError as error:
            _log.warning("%s", error)

    def _place(self, sample_id: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        return shard, sample_id - int(self._ends[shard] - self.shard_sizes[shard])

    def _table(self, shard: int) -> pa.Table:
        if shard not in self._open:
            while len(self._open) >= _MOST_OPEN:
                self._open.popitem(last=False)
            self._open[shard] = map_arrow(self._descriptor(self.groups[shard]))
        self._open.move_to_end(shard)
        return self._open[shard]

    def _descriptor(self, group: _Group) -> int:
        if group.number < 0:
            return self._original(group.source)

        def unpack(part: Path) -> None:
            with os.fdopen(self._original(group.source), "rb") as file:
                table = pq.ParquetFile(file).read_row_group(
                    group.number, columns=list(self.columns), use_threads=False
                )  # Arrow's pool of threads would not survive a fork
            with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

        name = digest(*map(str, group.source), *self.columns)
        return self.cache.made(f"{name}-{group.number}.arrow", group.size, unpack)

    def _original(self, source: Source) -> int:
        try:
            return self.cache.open(source) if source.is_remote else os.open(source.url, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{source.url} can no longer be opened ({error.strerror}).") from error


def _huggingface_files(path: str) -> list[Source]:
    """The Arrow files of a dataset that `save_to_disk` wrote (its training split), or that a folder holds; or none."""
    folder = Path(path)
    if not folder.is_dir():
        return list_sources(path, ".arrow") if path.endswith(".arrow") else []
    if (splits := folder / "dataset_dict.json").exists():
        names = json.loads(splits.read_text(encoding="utf-8"))["splits"]
        folder /= "train" if "train" in names else names[0]
    if (state := folder / "state.json").exists():
        files = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        return [source for file in files for source in list_sources(str(folder / file["filename"]), ".arrow")]
    return list_sources(str(folder), ".arrow") if any(folder.glob("*.arrow")) else []


def _parquet_groups(sources: list[Source], config: DataConfig) -> tuple[list[_Group], Columns]:
    groups, columns = [], None
    for source in sources:
        try:
            store, place = open_store(source.url)
            with store.open(place, "rb") as file:
                metadata = pq.ParquetFile(file).metadata
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{source.url} is not a parquet file that can be read ({_first_line(error)}).") from error
        if columns is None:
            columns = columns_of(metadata.schema.to_arrow_schema().names, config, source.url)
            _check_first_paths(source, columns.image)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            groups.append(_Group(source, number, group.num_rows, group.total_byte_size))
    assert columns is not None  # list_sources gives at least one
    return groups, columns


def _check_first_paths(source: Source, column: str) -> None:
    """Raises DataError where a column holds paths, and none of its first ones leads to a file."""
    if source.is_remote:
        return
    file = pq.ParquetFile(source.url)
    if pa.types.is_string(file.schema_arrow.field(column).type) and file.metadata.num_rows:
        check_paths(source.url, Path(source.url).parent, next(file.iter_batches(64, columns=[column]))[column])


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
