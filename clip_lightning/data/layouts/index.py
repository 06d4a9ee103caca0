"""The index of tar shards: one sidecar each (`00000.tar.idx`), written once, then memory-mapped.

A sidecar holds the shard's state (size, time of change, digest), what was left out of it and why, and 40 bytes per
sample. It lies beside its shard, or in an index folder where the data is read-only; it is written again when the shard
has changed. `python -m clip_lightning.data.index PATH...` indexes ahead of a run; training does it when missing.
"""

import fcntl
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.layout import Problem, digest
from clip_lightning.data.layouts.tar_index import RECORD, ShardIndex, index_tar
from clip_lightning.data.sources import Source, cache_folder
from clip_lightning.errors import DataError

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
        problems: what is left out; their `shard` is empty.
    """

    path: Path
    num_samples: int
    start: int
    digest: str
    problems: list[Problem]

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
    local: Callable[[Source], Path] | None = None,
    force: bool = False,
) -> list[Sidecar]:
    """The sidecars of all shards, made where they are missing or out of date.

    Args:
        index_folder: where to write them; None is beside each shard, or the cache where that cannot be written.
        workers: processes; None is one per core.
        local: downloads a remote shard and returns its path; not needed for local shards.
        force: writes all of them again.
    Raises: DataError where a shard cannot be read.
    """
    found = [None if force else sidecar_of(source, keys, index_folder) for source in sources]
    if any(sidecar is None for sidecar in found):
        # Other ranks on this node wait here, and then find the sidecars.
        with _locked(cache_folder(index_folder) / "index" / f"{digest(*(s.url for s in sources))}.lock"):
            missing = [s for s, sidecar in zip(sources, found, strict=True) if sidecar is None]
            if not force:
                missing = [source for source in missing if sidecar_of(source, keys, index_folder) is None]
            _make(missing, keys, index_folder, workers, local)
        found = [sidecar or sidecar_of(s, keys, index_folder) for s, sidecar in zip(sources, found, strict=True)]
    for source, sidecar in zip(sources, found, strict=True):
        if sidecar is None:
            raise DataError(f"{source.url} changed while it was indexed; wait until it is complete and start again.")
    return [sidecar for sidecar in found if sidecar is not None]


def problems_of(sources: Sequence[Source], sidecars: Sequence[Sidecar]) -> list[Problem]:
    """What all sidecars left out.

    A shard that ends early does not show how much is missing: it is taken to have had as many samples as the median
    of the undamaged shards.
    """
    usual = usual_size(sidecars)
    problems = []
    for source, sidecar in zip(sources, sidecars, strict=True):
        for problem in sidecar.problems:
            num = problem.num
            if not problem.name and not (problem.cause.startswith("damaged") and sidecar.num_samples):
                num = max(num, usual - sidecar.num_samples)
            problems.append(problem._replace(shard=source.url, num=num))
    return problems


def usual_size(sidecars: Sequence[Sidecar]) -> int:
    """The median number of samples of the shards that could be read to their end; 0 where there is none."""
    complete = [one.num_samples for one in sidecars if all(problem.name for problem in one.problems)]
    return int(np.median(complete)) if complete else 0


def _make(
    sources: Sequence[Source],
    keys: Keys,
    index_folder: str | None,
    workers: int | None,
    local: Callable[[Source], Path] | None,
) -> None:
    remote = any(source.is_remote for source in sources)
    workers = min(workers or (_DOWNLOADS if remote else len(os.sched_getaffinity(0))), len(sources))

    def fetch_and_make(source: Source) -> None:
        path = local(source) if local and source.is_remote else Path(source.url)
        _make_one(source, path, keys, index_folder)

    with _progress(len(sources)) as advance:
        if workers <= 1 or (not remote and sum(source.size for source in sources) < _SMALL):
            for source in sources:
                fetch_and_make(source)
                advance()
            return
        # Spawned, not forked: the run's process may hold threads by now. Nothing that they import is slow.
        with ThreadPoolExecutor(workers) if remote else ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            if remote:
                jobs = [pool.submit(fetch_and_make, source) for source in sources]
            else:
                jobs = [pool.submit(_make_one, source, Path(source.url), keys, index_folder) for source in sources]
            for job in as_completed(jobs):
                job.result()
                advance()


def _make_one(source: Source, path: Path, keys: Keys, index_folder: str | None) -> None:
    try:
        index = index_tar(path, keys.images, keys.captions)
    except OSError as error:
        raise DataError(f"{source.url} cannot be read ({error.strerror}).") from error
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
    """Writes a sidecar atomically."""
    head = json.dumps(
        {
            "size": source.size,
            "version": source.version,
            "digest": index.digest,
            "num_samples": len(index.records),
            "problems": index.problems,
        }
    ).encode()
    head += b" " * (-(len(_MAGIC) + 8 + len(head)) % _ALIGN)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_MAGIC + len(head).to_bytes(8, "little") + head)
            file.write(index.records.tobytes())
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
            complete = os.fstat(file.fileno()).st_size == 16 + length + head["num_samples"] * RECORD.itemsize
    except (OSError, ValueError):
        return None
    # Sidecars that were copied along with remote data hold no version of this store.
    same = head["size"] == source.size and (head["version"] == source.version or not source.version)
    if not complete or not same:
        return None
    problems = [Problem(*fields) for fields in head["problems"]]
    return Sidecar(path, head["num_samples"], 16 + length, head["digest"], problems)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        # Without locks two processes may index the same data: twice the work, and the same files.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
