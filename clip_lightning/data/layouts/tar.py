"""Webdataset tars, read in place: a sample is one `pread` at the offset in the index.

No tar is unpacked, and only images and captions are read, in any order.
"""

import os
import resource
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.index import Keys, Sidecar, StoredProblems, index_sources, usual_size
from clip_lightning.data.layouts.layout import (
    BadSample,
    Ids,
    JoinedProblems,
    Layout,
    Problem,
    RawSample,
    digest,
    in_sub_folders,
)
from clip_lightning.data.layouts.tar_index import decoded, parsed, texts_of
from clip_lightning.data.remote.cache import ShardCache
from clip_lightning.data.sources import Source, any_on_network, list_sources
from clip_lightning.errors import DataError

_REMOTE_WINDOW = 32  # shards of remote data, or of a network mount, that are mixed at a time
_MOST_OPEN = 4_096  # shards that a process keeps open, as far as the system lets it
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
_GAP = 1 << 14  # bytes between image and caption up to which both are read at once


def build_tar(config: DataConfig, path: str) -> "Tars":
    """The shards at `path`, indexed.

    Raises: DataError where there are no shards or they cannot be read.
    """
    sources = list_sources(path, ".tar", how_to_get=config.how_to_get)
    keys = Keys.of(config)
    if not any(source.is_remote for source in sources):
        sidecars = index_sources(sources, keys, index_folder=config.index_folder)
        tars = Tars(sources, sidecars, keys)
        if beside := beside_tars(path, usual_size(sidecars)):
            tars.problems = JoinedProblems([tars.problems, beside])
        return tars
    cache = ShardCache(config.cache)
    largest = max(sources, key=lambda source: source.size)
    cache.check_size(largest.name, largest.size)
    folder = config.index_folder or config.cache.folder
    return Tars(sources, index_sources(sources, keys, index_folder=folder, cache=cache), keys, cache)


def beside_tars(path: str, usual: int) -> list[Problem]:
    """Compressed tars in a folder of tars, and tars in its sub-folders: both are left out.

    Args: usual: samples that a compressed tar is taken to hold.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        return []
    names = {entry.name for entry in folder.iterdir()}
    if not any(name.endswith(".tar") for name in names):  # the sub-folders are read then
        return []
    # A compressed copy beside its tar adds no samples.
    stems = {name: name.replace(".tgz", ".tar.gz").rpartition(".")[0] for name in names if name.endswith(_COMPRESSED)}
    left = [
        Problem(str(folder / name), "", "compressed shard (unpack it to .tar)", max(1, usual))
        for name, stem in sorted(stems.items())
        if stem not in names
    ]
    return left + in_sub_folders(path, ".tar")


class Tars(Layout):
    """The samples of tar shards, in the order of the shards' names and of the images in them."""

    def __init__(
        self, sources: list[Source], sidecars: list[Sidecar], keys: Keys, cache: ShardCache | None = None
    ) -> None:
        """Args: cache: downloads remote shards."""
        self.sources, self.sidecars, self.keys, self.cache = sources, sidecars, keys, cache
        self.shard_sizes = np.array([sidecar.num_samples for sidecar in sidecars], np.int64)
        self._ends = np.cumsum(self.shard_sizes)
        self.num_samples = int(self._ends[-1])
        self.problems = StoredProblems(sources, sidecars)
        self.remote = cache is not None
        self.on_network = any_on_network(sources)
        self.window_shards = _REMOTE_WINDOW if self.remote or self.on_network else None
        self.largest_download = max(source.size for source in sources) if self.remote else 0
        self._open: OrderedDict[int, int] = OrderedDict()
        self._maps: OrderedDict[int, npt.NDArray[np.void]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict(), "_maps": OrderedDict()}

    def read(self, sample_id: int) -> RawSample:
        """Sample `sample_id`."""
        (sample,) = self.read_many(np.array([sample_id], np.int64))
        if isinstance(sample, BadSample):
            raise sample
        return sample

    def read_many(self, sample_ids: Ids) -> list[RawSample | BadSample]:
        """The samples of int64 [n], read shard by shard in the order of their offsets."""
        samples: dict[int, RawSample | BadSample] = {}
        for shard, rows in self._by_shard(sample_ids):
            descriptor = self._descriptor(shard)
            chosen = self._records(shard)[sample_ids[rows] - (self._ends[shard] - self.shard_sizes[shard])]
            for row, record in sorted(zip(rows.tolist(), chosen.tolist(), strict=True), key=lambda pair: pair[1][0]):
                try:
                    samples[row] = self._sample(shard, descriptor, record)
                except BadSample as bad:
                    samples[row] = bad
        return [samples[row] for row in range(len(sample_ids))]

    def captions(self, sample_id: int) -> list[str]:
        """Only the captions of a sample."""
        shard, record = self._record(sample_id)
        offset, size = record[1], record[3]
        return self._captions(_pread(self._descriptor(shard), offset, size, self.sources[shard]), record)

    def name_of(self, sample_id: int) -> Problem:
        """The shard and the name of the image's member (its first 100 characters)."""
        shard, record = self._record(sample_id)
        header = _pread(self._descriptor(shard), record[0] - 512, 100, self.sources[shard])
        return Problem(self.sources[shard].url, header.partition(b"\0")[0].decode("utf-8", "backslashreplace"), "")

    def shard_of(self, sample_id: int) -> str:
        """The shard's URL."""
        return self.sources[int(np.searchsorted(self._ends, sample_id, side="right"))].url

    def newest_download(self) -> float:
        """When the cache last grew."""
        return self.cache.newest_download() if self.cache else 0.0

    def fingerprint(self) -> str:
        """Of the names of the shards and of the headers and captions in them, not of their folder."""
        pairs = zip(self.sources, self.sidecars, strict=True)
        return digest(*(f"{source.name} {sidecar.digest}" for source, sidecar in pairs))

    def prefetch(self, shard: int) -> None:
        """Downloads a remote shard, unless another process downloads it already."""
        if self.cache is not None:
            self.cache.prefetch(self.sources[shard])

    def _by_shard(self, sample_ids: Ids) -> list[tuple[int, Ids]]:
        """The shards of some samples, and which of the samples are in each."""
        shards = np.searchsorted(self._ends, sample_ids, side="right")
        order = np.argsort(shards, kind="stable")
        numbers, starts = np.unique(shards[order], return_index=True)
        return list(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True))

    def _record(self, sample_id: int) -> tuple[int, tuple[int, ...]]:
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        return shard, self._records(shard)[sample_id - int(self._ends[shard] - self.shard_sizes[shard])].tolist()

    def _records(self, shard: int) -> npt.NDArray[np.void]:
        """The records of a shard; the latest shards stay mapped."""
        if shard not in self._maps:
            while len(self._maps) >= _MOST_OPEN:
                self._maps.popitem(last=False)
            self._maps[shard] = self.sidecars[shard].records()
        self._maps.move_to_end(shard)
        return self._maps[shard]

    def _descriptor(self, shard: int) -> int:
        """The open file of a shard; raises DataError where it has changed."""
        source = self.sources[shard]
        if (descriptor := self._open.get(shard)) is None:
            # An open file keeps the bytes of a shard on the disk after the cache has removed it.
            most = 2 * _REMOTE_WINDOW if self.cache or self.on_network else _files_to_open()
            while len(self._open) >= most:
                os.close(self._open.popitem(last=False)[1])
            try:
                descriptor = self.cache.open(source) if self.cache else os.open(source.url, os.O_RDONLY)
            except OSError as error:
                raise DataError(f"{source.url} can no longer be opened ({error.strerror}).") from error
            self._open[shard] = descriptor
        self._open.move_to_end(shard)
        stat = os.fstat(descriptor)
        if stat.st_size != source.size or not (self.cache or str(stat.st_mtime_ns) == source.version):
            raise _changed(source)
        return descriptor

    def _sample(self, shard: int, descriptor: int, record: tuple[int, ...]) -> RawSample:
        image_at, caption_at, image_size, caption_size = record[:4]
        begin, end = min(image_at, caption_at), max(image_at + image_size, caption_at + caption_size)
        source = self.sources[shard]
        if end - begin <= image_size + caption_size + _GAP:
            both = _pread(descriptor, begin, end - begin, source)
            image = both[image_at - begin : image_at - begin + image_size]
            caption = both[caption_at - begin : caption_at - begin + caption_size]
        else:
            image = _pread(descriptor, image_at, image_size, source)
            caption = _pread(descriptor, caption_at, caption_size, source)
        return RawSample(image, self._captions(caption, record))

    def _captions(self, content: bytes, record: tuple[int, ...]) -> list[str]:
        """The captions that the index found; raises BadSample where they have changed."""
        key, in_json = record[7:9]
        texts = texts_of(parsed(content).get(self.keys.captions[key])) if in_json else [decoded(content)]
        if not texts or not texts[0]:
            raise BadSample("empty caption")
        return texts


@cache
def _files_to_open() -> int:
    """How many shards may stay open: half of what the system allows, to which the process's own limit is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 2 * _MOST_OPEN) if hard != resource.RLIM_INFINITY else 2 * _MOST_OPEN
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(1, max(soft, wanted) // 2)


def _pread(descriptor: int, offset: int, size: int, source: Source) -> bytes:
    try:
        content = os.pread(descriptor, size, offset)
    except OSError as error:
        raise DataError(f"{source.url} cannot be read at byte {offset:,} ({error.strerror}).") from error
    if len(content) != size:
        raise _changed(source)
    return content


def _changed(source: Source) -> DataError:
    return DataError(f"{source.url} has changed since it was indexed; start again to index it again.")
