"""A cache of remote shards on this node: complete files, downloaded once; the least recently used are evicted.

Several processes and several jobs may share a folder: a file appears under its name only when it is complete, locks
keep two from downloading the same one, and a file that is evicted while it is open stays readable until it is
closed. A request that fails is repeated after growing pauses and continues where it stopped; the run slows down and
logs it, but never trains on other bytes.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from clip_lightning.config.schema import CacheConfig
from clip_lightning.data.layouts.layout import digest
from clip_lightning.data.sources import Source, cache_folder, open_store, version_of
from clip_lightning.errors import DataError
from clip_lightning.file_lock import OWNER, FileLock

_log = logging.getLogger(__name__)
_PIECE = 8 << 20  # bytes of a request
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0  # seconds
_TURN = 0.05  # seconds between looks for room
_REPORT_SECONDS = 30.0  # between messages about a wait
STALL_SECONDS = 600.0  # after which a process that makes no progress is no longer waited for
_EVICTION = "evicting"  # name of the lock under which files are deleted and room is reserved
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ShardCache:
    """The files in one folder."""

    def __init__(self, config: CacheConfig, pause: Callable[[float], None] = time.sleep) -> None:
        """Args: pause: waits so many seconds between tries."""
        self.folder = cache_folder(config.folder) / "shards"
        self.max_bytes, self.retries, self.pause = int(config.max_gib * 2**30), config.retries, pause

    def open(self, source: Source) -> int:
        """A file descriptor of the shard's bytes, downloaded where they are not here.

        Raises: DataError where the store or the disk keeps failing.
        """
        return self.made(_name(source), source.size, lambda part: self._download(source, part))

    def made(self, name: str, size: int, fill: Callable[[Path], None]) -> int:
        """A file descriptor of the file `name`; where it is not here, `fill` writes it to the path it is given.

        Args: size: bytes it will take, or about.
        """
        while True:
            try:
                descriptor = os.open(self.folder / name, os.O_RDONLY)
            except FileNotFoundError:  # not downloaded yet, or evicted by another process a moment ago
                self._make(name, size, fill, wait=True)
                continue
            os.utime(descriptor)
            return descriptor

    def content(self, source: Source, begin: int = 0, end: int | None = None) -> bytes:
        """Bytes `begin` to `end` of a file, read by one ranged request and not kept.

        Raises: DataError where the store keeps failing.
        """
        store, path = open_store(source.url)
        last = source.size if end is None else end
        for failures in range(1, self.retries + 2):
            try:
                content = bytes(store.cat_file(path, start=begin, end=last))
                if len(content) != last - begin:
                    raise OSError(f"{len(content):,} bytes came instead of {last - begin:,}")
                return content
            except FileNotFoundError as error:
                raise DataError(f"{source.url} cannot be read ({error}).") from error
            except Exception as error:  # stores raise their own kinds; each of them is worth another try
                self._wait(source, error, failures)
        raise AssertionError("the last failure raises")

    def prefetch(self, source: Source) -> None:
        """Downloads a shard ahead of its use, unless another process does so.

        A failure is only logged: the reader that needs the shard raises it.
        """
        try:
            self._make(_name(source), source.size, lambda part: self._download(source, part), wait=False)
        except DataError as error:
            _log.warning("%s", error)

    def _make(self, name: str, size: int, fill: Callable[[Path], None], *, wait: bool) -> None:
        self.check_size(name, size)
        path, part = self.folder / name, self.folder / f"{name}.part"
        with self._locked(name, wait=wait) as lock:
            if lock is None or path.exists():
                return
            try:
                lock.beat_by_thread()
                while not self._reserve(part, size):  # the room is taken by what other processes are downloading
                    time.sleep(_TURN)
                fill(part)
                with part.open("rb") as file:
                    os.fsync(file.fileno())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    def check_size(self, name: str, size: int) -> None:
        """Raises DataError where a file of that size does not fit, even alone."""
        if size > self.max_bytes:
            raise DataError(
                f"data.cache.max_gib={self.max_bytes / 2**30:g} is too small: {name} alone takes {size / 2**30:.2f}."
            )

    def newest_download(self) -> float:
        """When a file here last grew, in seconds since 1970; 0 where none ever did."""
        newest = 0.0
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.folder):
                with suppress(FileNotFoundError):
                    if not entry.name.endswith((".lock", OWNER)):
                        newest = max(newest, entry.stat().st_ctime)
        return newest

    def _download(self, source: Source, part: Path) -> None:
        store, path = open_store(source.url)
        reader: BinaryIO | None = None
        done = failures = 0
        with (
            part.open("r+b", buffering=0) as out,
            _reporting(lambda: f"{source.url}: {done:,} of {source.size:,} bytes"),
        ):
            while done < source.size:
                try:
                    if reader is None:
                        reader = _reader(store, path, source, done)
                    piece = reader.read(min(_PIECE, source.size - done))
                    if not piece:
                        raise OSError("it ended early")
                except DataError:
                    raise
                except Exception as error:  # stores raise their own kinds; each of them is worth another try
                    failures += 1
                    reader = None
                    self._wait(source, error, failures)
                    continue
                self._write(out, piece)
                done, failures = done + len(piece), 0
            self._check_again(store, path, source)

    def _check_again(self, store: Any, path: str, source: Source) -> None:
        """Whether the file that was read piece by piece was one and the same."""
        for failures in range(1, self.retries + 2):
            try:
                _reader(store, path, source, 0).close()
                return
            except DataError:
                raise
            except Exception as error:
                self._wait(source, error, failures)

    def _wait(self, source: Source, error: Exception, failures: int) -> None:
        if failures > self.retries:
            raise DataError(
                f"{source.url} cannot be read: {failures} tries failed, the last with {error!r}."
            ) from error
        seconds = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (failures - 1))
        _log.warning("%s: %r; trying again in %.1f s (%d of %d)", source.url, error, seconds, failures, self.retries)
        self.pause(seconds)

    def _write(self, out: Any, piece: bytes) -> None:
        left = memoryview(piece)
        while left:
            try:
                left = left[out.write(left) :]
            except OSError as error:
                if error.errno not in _FULL or not self._evict_half():
                    raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DataError:
        fix = "make room there, or set data.cache.folder"
        return DataError(f"{self.folder} cannot be written ({error.strerror}); {fix}.")

    def _evict_half(self) -> bool:
        """Halves what is kept, for a disk smaller than `data.cache.max_gib`; False where nothing could be deleted."""
        with self._locked(_EVICTION, wait=True):
            return self._evict(self.max_bytes // 2)[1] > 0

    def _reserve(self, part: Path, size: int) -> bool:
        """Reserves room by a file of that size without content; False where there is none for now."""
        with self._locked(_EVICTION, wait=True):
            left, _ = self._evict(size)
            if left + size > self.max_bytes:
                return False
            try:
                with part.open("wb") as file:
                    file.truncate(size)
            except OSError as error:
                raise self._unwritable(error) from error
            return True

    def _evict(self, needed: int) -> tuple[int, int]:
        """Deletes the least recently used files until `needed` bytes more fit; the bytes left, and files deleted."""
        files = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # a part that was finished a moment ago
                if not entry.name.endswith((".lock", OWNER)):
                    stat = entry.stat()
                    files.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
        left, deleted = sum(size for _, size, _ in files), 0
        for _, size, path in sorted(files):
            if left + needed <= self.max_bytes:
                break
            # A part whose lock is free belongs to a process that was killed.
            if path.suffix != ".part" or not self._is_locked(path.stem):
                path.unlink(missing_ok=True)
                left, deleted = left - size, deleted + 1
        return left, deleted

    def _is_locked(self, name: str) -> bool:
        with self._locked(name, wait=False) as lock:
            return lock is None

    @contextmanager
    def _locked(self, name: str, *, wait: bool) -> Iterator[FileLock | None]:
        """Holds the lock of a file; gives None where another process holds it and it is not waited for.

        Raises: DataError where the other process makes no progress, or the folder has no locks.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{name}.lock")
        waiting = _Waiting(self.folder / f"{name}.part", lock) if wait else None
        try:
            is_mine = lock.acquire(waiting.keep_waiting) if waiting else lock.acquire()
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield lock if is_mine else None
        finally:
            lock.release()


class _Waiting:
    """The wait for a file that another process makes: as long as that process makes progress."""

    def __init__(self, part: Path, lock: FileLock) -> None:
        self.part, self.lock = part, lock
        self.state: tuple[int, int] | None = None
        self.since = self.warned = time.monotonic()

    def keep_waiting(self) -> bool:
        """True. Raises: DataError after `STALL_SECONDS` without progress."""
        try:
            stat = self.part.stat()
            state = stat.st_mtime_ns, stat.st_ino
        except FileNotFoundError:
            state = 0, 0
        now = time.monotonic()
        if state != self.state:
            self.state, self.since = state, now
        if now - self.since > STALL_SECONDS:
            raise DataError(
                f"{self.part.with_suffix('')} is being made by {self.lock.owner() or 'another process'}, which has "
                f"made no progress for {STALL_SECONDS:.0f} s; end that process, or set data.cache.folder."
            )
        if now - self.warned > _REPORT_SECONDS:
            self.warned = now
            _log.warning("waiting for %s, made by %s", self.part.with_suffix(""), self.lock.owner())
        return True


def _name(source: Source) -> str:
    """The name of a shard in the cache: another version of it has another one."""
    return f"{digest(source.url, str(source.size), source.version)}-{source.name}"


def _reader(store: Any, path: str, source: Source, offset: int) -> BinaryIO:
    """The shard, open at `offset`. Raises DataError where it is gone or is another one than was indexed."""
    try:
        info = store.info(path)
        if int(info["size"]) != source.size or version_of(info) != source.version:
            raise DataError(f"{source.url} has changed since it was listed; start again to index it.")
        reader: BinaryIO = store.open(path, "rb", cache_type="readahead", block_size=_PIECE)
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{source.url} cannot be read ({error}).") from error
    reader.seek(offset)
    return reader


@contextmanager
def _reporting(state: Callable[[], str], every: float = _REPORT_SECONDS) -> Iterator[None]:
    """Logs the state of a download each `every` seconds."""
    over = threading.Event()

    def report() -> None:
        while not over.wait(every):
            _log.warning("waiting for %s", state())

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()  # a process may fork next
