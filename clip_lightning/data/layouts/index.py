"""The index of tar shards: one sidecar each (`00000.tar.idx`), written once, then memory-mapped.

A sidecar holds the shard's state (size, time of change, digest), what was left out of it and why, and 40 bytes per
sample. It lies beside its shard, or in an index folder where the data is read-only; it is written again when the shard
has changed. `python -m clip_lightning.data.index PATH...` indexes ahead of a run; training does it when missing.
"""

import json
import mmap
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.layout import Problem, ProblemList, digest, lost_by_cause
from clip_lightning.data.layouts.tar_index import RECORD, ShardIndex, index_tar
from clip_lightning.data.remote.cache import ShardCache
from clip_lightning.data.remote.ranged_file import RangedFile
from clip_lightning.data.sources import Source, cache_folder, list_beside
from clip_lightning.errors import DataError
from clip_lightning.file_lock import FileLock

_MAGIC = b"CLIPIDX2"
_ALIGN = 64
_SHOWN = 20  # problems that are printed
_DOWNLOADS = 8  # remote shards fetched at a time
_SMALL = 1 << 28  # bytes that one process indexes before others would have started


class Sidecar(NamedTuple):
    """The part of a shard's index that is kept in memory.

    Attributes:
        path: its file.
        num_samples: records in it, RECORD each, from byte `start` on.
        digest: of the shard's headers and captions.
        num_problems: how much is left out; of `problems_size` bytes at the end of the file.
        lost: cause and lost samples of what is left out by name.
        of_shard: what is left out without a name; their `shard` is empty.
    """

    path: Path
    num_samples: int
    start: int
    digest: str
    num_problems: int
    problems_size: int
    lost: tuple[tuple[str, int], ...]
    of_shard: tuple[Problem, ...]

    def problems(self) -> list[Problem]:
        """What is left out, read from the file; their `shard` is empty."""
        if not self.num_problems:
            return []
        with self.path.open("rb") as file:
            file.seek(-self.problems_size, os.SEEK_END)
            return [Problem(*fields) for fields in json.loads(file.read())]

    def records(self) -> npt.NDArray[np.void]:
        """RECORD [num_samples], memory-mapped."""
        if not self.num_samples:
            return np.empty(0, RECORD)
        with self.path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content.madvise(mmap.MADV_RANDOM)  # neighbours in a shard are not read together
        return np.frombuffer(content, RECORD, self.num_samples, self.start)


class Keys(NamedTuple):
    """Which members are images and captions; each choice has sidecars of its own."""

    images: tuple[str, ...]
    captions: tuple[str, ...]

    @classmethod
    def of(cls, config: DataConfig) -> "Keys":
        """The keys of a data config."""
        return cls(tuple(config.image_keys), tuple(config.caption_keys))

    def suffix(self) -> str:
        """What is added to a shard's name: other keys than the default have sidecars of their own."""
        is_default = self == Keys.of(DataConfig())
        return ".idx" if is_default else f".{digest(*self.images, '', *self.captions)[:6]}.idx"


def sidecar_of(source: Source, keys: Keys, index_folder: str | None) -> Sidecar | None:
    """The shard's sidecar, if there is one for the shard's present state."""
    for path in sidecar_paths(source, keys, index_folder):
        if (sidecar := _read(path, source)) is not None:
            return sidecar
    return None


def sidecar_paths(source: Source, keys: Keys, index_folder: str | None) -> list[Path]:
    """Where the shard's sidecar may be, the first choice first."""
    name = source.name + keys.suffix()
    elsewhere = cache_folder(index_folder) / "index" / f"{digest(source.url)[:8]}-{name}"
    if index_folder is not None or source.is_remote:
        return [elsewhere]
    beside = Path(source.url).with_name(name)
    # Read-only for everybody is also read-only for root, whom the system would not stop.
    is_open = beside.parent.stat().st_mode & 0o222
    return [beside, elsewhere] if is_open or beside.exists() else [elsewhere]


def index_sources(
    sources: Sequence[Source],
    keys: Keys,
    *,
    index_folder: str | None = None,
    workers: int | None = None,
    cache: ShardCache | None = None,
    force: bool = False,
) -> list[Sidecar]:
    """The sidecars of all shards, made where they are missing or out of date.

    Args:
        index_folder: where to write them; None is beside each shard, or the cache where that cannot be written.
        workers: processes; None is one per core.
        cache: of remote shards; may be left out where there are none. A sidecar beside a remote shard is taken as it
            is; the headers of the others are read by ranged requests.
        force: makes all of them again.
    Raises: DataError where a shard cannot be read.
    """
    found = [None if force else sidecar_of(source, keys, index_folder) for source in sources]
    if any(sidecar is None for sidecar in found):
        # Other ranks on this node wait here, and then find the sidecars.
        with _locked(cache_folder(index_folder) / "index" / f"{digest(*(s.url for s in sources))}.lock"):
            missing = [s for s, sidecar in zip(sources, found, strict=True) if sidecar is None]
            if not force:
                missing = [source for source in missing if sidecar_of(source, keys, index_folder) is None]
            if not force and cache:
                missing = copy_sidecars(missing, keys, index_folder, cache)
            _make(missing, keys, index_folder, workers, cache)
        found = [sidecar or sidecar_of(s, keys, index_folder) for s, sidecar in zip(sources, found, strict=True)]
    for source, sidecar in zip(sources, found, strict=True):
        if sidecar is None:
            raise DataError(f"{source.url} changed while it was indexed; wait until it is complete and start again.")
    return [sidecar for sidecar in found if sidecar is not None]


class StoredProblems(ProblemList):
    """What all sidecars left out, read from them when it is iterated: a large set has hundreds of thousands.

    A shard that ends early does not show how much is missing: it is taken to have had as many samples as the median
    of the undamaged shards.
    """

    def __init__(self, sources: Sequence[Source], sidecars: Sequence[Sidecar]) -> None:
        """Args: sidecars: of the sources."""
        self.sources, self.sidecars, self.usual = sources, sidecars, usual_size(sidecars)
        self._num = sum(sidecar.num_problems for sidecar in sidecars)

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[Problem]:
        for source, sidecar in zip(self.sources, self.sidecars, strict=True):
            for problem in sidecar.problems():
                yield self._placed(source, sidecar, problem)

    def lost_by_cause(self) -> Counter[str]:
        """Lost samples by cause, from the heads of the sidecars."""
        lost = Counter[str]()
        for sidecar in self.sidecars:
            for cause, num in sidecar.lost:
                lost[cause] += num
        for problem in self.of_shards():
            lost[problem.cause] += problem.num
        return lost

    def of_shards(self) -> list[Problem]:
        """The problems that concern a whole shard, from the heads of the sidecars."""
        pairs = zip(self.sources, self.sidecars, strict=True)
        return [self._placed(source, one, problem) for source, one in pairs for problem in one.of_shard]

    def _placed(self, source: Source, sidecar: Sidecar, problem: Problem) -> Problem:
        num = problem.num
        if not problem.name and not (problem.cause.startswith("damaged") and sidecar.num_samples):
            num = max(num, self.usual - sidecar.num_samples)
        return problem._replace(shard=source.url, num=num)


def usual_size(sidecars: Sequence[Sidecar]) -> int:
    """The median number of samples of the shards that could be read to their end; 0 where there is none."""
    complete = [one.num_samples for one in sidecars if not one.of_shard]
    return int(np.median(complete)) if complete else 0


def _make(
    sources: Sequence[Source],
    keys: Keys,
    index_folder: str | None,
    workers: int | None,
    cache: ShardCache | None,
) -> None:
    remote = any(source.is_remote for source in sources)
    workers = min(workers or (_DOWNLOADS if remote else len(os.sched_getaffinity(0))), len(sources))

    with _progress(len(sources)) as advance:
        if workers <= 1 or (not remote and sum(source.size for source in sources) < _SMALL):
            for source in sources:
                _make_one(source, keys, index_folder, cache)
                advance()
            return
        # Spawned, not forked: the run's process may hold threads by now. Nothing that they import is slow.
        with ThreadPoolExecutor(workers) if remote else ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            jobs = [pool.submit(_make_one, source, keys, index_folder, cache) for source in sources]
            for job in as_completed(jobs):
                job.result()
                advance()


def _make_one(source: Source, keys: Keys, index_folder: str | None, cache: ShardCache | None) -> None:
    try:
        remote = RangedFile(source, cache) if source.is_remote and cache else None
        index = index_tar(remote or Path(source.url), keys.images, keys.captions)
    except OSError as error:
        raise DataError(f"{source.url} cannot be read ({error.strerror}).") from error
    _write(source, keys, index_folder, index)


def copy_sidecars(sources: Sequence[Source], keys: Keys, index_folder: str | None, cache: ShardCache) -> list[Source]:
    """Copies the sidecars that are beside remote shards of the same size; returns the shards that have none."""
    folders = {source.url.rpartition("/")[0] for source in sources if source.is_remote}
    beside = {one.url: one for folder in folders for one in list_beside(folder, keys.suffix())}

    def copy(source: Source) -> Source | None:
        """The shard, if it has no sidecar that is about it."""
        if (sidecar := beside.get(source.url + keys.suffix())) is None:
            return source
        content = cache.content(sidecar)
        (path,) = sidecar_paths(source, keys, index_folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        own = renewed(content, source)
        if own is None:
            return source
        _write_whole(path, [own])
        return None if _read(path, source) else source

    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        return [source for source in pool.map(copy, sources) if source is not None]


def renewed(content: bytes, source: Source) -> bytes | None:
    """A sidecar that was written elsewhere, with this store's version of the shard; None where it is about another.

    Only the sizes can be compared: the store that the sidecar was written at had other versions.
    """
    length = int.from_bytes(content[8:16], "little")
    if content[:8] != _MAGIC or length > len(content):
        return None
    try:
        head = json.loads(content[16 : 16 + length])
        return (
            _head(head | {"version": source.version}) + content[16 + length :] if head["size"] == source.size else None
        )
    except (ValueError, KeyError, TypeError):
        return None


def _write(source: Source, keys: Keys, index_folder: str | None, index: ShardIndex) -> None:
    candidates = sidecar_paths(source, keys, index_folder)
    for candidate in candidates:
        try:
            candidate.parent.mkdir(parents=True, exist_ok=True)
            write_sidecar(candidate, source, index)
            return
        except OSError as error:
            if candidate == candidates[-1]:
                raise DataError(
                    f"{candidate} cannot be written ({error.strerror}); set data.index_folder to a writable folder."
                ) from error


def write_sidecar(path: Path, source: Source, index: ShardIndex) -> None:
    """Writes a sidecar, complete or not at all."""
    problems = json.dumps(index.problems).encode() if index.problems else b""
    head = {
        "size": source.size,
        "version": source.version,
        "digest": index.digest,
        "num_samples": len(index.records),
        "num_problems": len(index.problems),
        "problems_size": len(problems),
        "lost": list(lost_by_cause(problem for problem in index.problems if problem.name).items()),
        "of_shard": [problem for problem in index.problems if not problem.name],
    }
    _write_whole(path, [_head(head), index.records.tobytes(), problems])


def _head(fields: dict[str, Any]) -> bytes:
    head = json.dumps(fields).encode()
    head += b" " * (-(len(_MAGIC) + 8 + len(head)) % _ALIGN)
    return _MAGIC + len(head).to_bytes(8, "little") + head


def _write_whole(path: Path, parts: Sequence[bytes]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path, source: Source) -> Sidecar | None:
    """A sidecar, or None where it is missing, damaged, or describes another state of the shard."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
            length = int.from_bytes(start[8:16], "little")
            if start[:8] != _MAGIC or length > os.fstat(file.fileno()).st_size:
                return None
            head = json.loads((start[16:] + file.read(max(0, length - len(start) + 16)))[:length])
            end = 16 + length + head["num_samples"] * RECORD.itemsize + head["problems_size"]
            complete = os.fstat(file.fileno()).st_size == end
    except (OSError, ValueError, KeyError):
        return None
    # Sidecars that were copied along with remote data hold no version of this store.
    same = head["size"] == source.size and (head["version"] == source.version or not source.version)
    if not complete or not same:
        return None
    return Sidecar(
        path,
        head["num_samples"],
        16 + length,
        head["digest"],
        head["num_problems"],
        head["problems_size"],
        tuple((sys.intern(cause), num) for cause, num in head["lost"]),
        tuple(Problem(*fields) for fields in head["of_shard"]),
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    # Without locks two processes may index the same data: twice the work, and the same complete files.
    with suppress(OSError):
        lock.acquire(lambda: True)
        lock.beat_by_thread()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, elsewhere a line for each tenth; silent for a handful of shards."""
    if total < 8:
        yield lambda: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("indexing shards", total=total)
            yield lambda: bar.advance(task)
    else:
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if done * 10 // total != (done - 1) * 10 // total:
                print(f"indexed {done:,} of {total:,} shards", file=sys.stderr, flush=True)

        yield advance
