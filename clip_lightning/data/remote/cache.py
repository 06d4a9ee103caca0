"""Remote shards on this machine: whole files, downloaded once, the least recently used thrown out.

Several processes and several jobs may share a folder: a file appears under its name only when it is complete, locks
keep two from downloading the same one, and a file that is thrown out while it is open stays readable until it is
closed. A store that fails is asked again with growing pauses and continued where it stopped; the run slows down and
says so, but never goes on with other bytes.
"""

import errno
import fcntl
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

_log = logging.getLogger(__name__)
_PIECE = 8 << 20  # bytes asked for at a time
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0  # seconds
_TURN = 0.05  # seconds between looks for room
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ShardCache:
    """The files in one folder."""

    def __init__(self, config: CacheConfig, pause: Callable[[float], None] = time.sleep) -> None:
        """Args: pause: waits so many seconds between tries."""
        self.folder = cache_folder(config.folder) / "shards"
        self.max_bytes, self.retries, self.pause = int(config.max_gib * 2**30), config.retries, pause

    def open(self, source: Source) -> int:
        """A file descriptor of the shard's bytes, downloaded where they are not here.

        Raises: DataError where the store or the disk gives up.
        """
        return self.made(_name(source), source.size, lambda part: self._download(source, part))

    def made(self, name: str, size: int, fill: Callable[[Path], None]) -> int:
        """A file descriptor of the file `name`; where it is not here, `fill` writes it to the path it is given.

        Args: size: bytes it will take, or about.
        """
        while True:
            try:
                descriptor = os.open(self.folder / name, os.O_RDONLY)
            except FileNotFoundError:  # not here yet, or thrown out by another process a moment ago
                self._make(name, size, fill, wait=True)
                continue
            os.utime(descriptor)
            return descriptor

    def path(self, source: Source) -> Path:
        """Where the shard is now; it may be thrown out later."""
        os.close(self.open(source))
        return self.folder / _name(source)

    def prefetch(self, source: Source) -> None:
        """Downloads a shard ahead of its use, unless another process is at it; who needs it tells of what fails."""
        try:
            self._make(_name(source), source.size, lambda part: self._download(source, part), wait=False)
        except DataError as error:
            _log.warning("%s", error)

    def _make(self, name: str, size: int, fill: Callable[[Path], None], *, wait: bool) -> None:
        if size > self.max_bytes:
            raise DataError(
                f"data.cache.max_gib={self.max_bytes / 2**30:g} is too small: {name} alone takes {size / 2**30:.2f}."
            )
        path = self.folder / name
        with self._locked(f"{name}.lock", wait=wait) as mine:
            if not mine or path.exists():
                return
            part = self.folder / f"{name}.part"
            try:
                while not self._reserve(part, size):
                    time.sleep(
                        _TURN
                    )  # what others are downloading takes the room, and may be thrown out when it is here
                fill(part)
                with part.open("rb") as file:
                    os.fsync(file.fileno())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    def _download(self, source: Source, part: Path) -> None:
        store, path = open_store(source.url)
        reader: BinaryIO | None = None
        done = failures = 0
        with part.open("r+b", buffering=0) as out, _telling(lambda: f"{source.url}: {done:,} of {source.size:,} bytes"):
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
        _log.warning("%s: %r; asking again in %.1f s (%d of %d)", source.url, error, seconds, failures, self.retries)
        self.pause(seconds)

    def _write(self, out: Any, piece: bytes) -> None:
        left = memoryview(piece)
        while left:
            try:
                left = left[out.write(left) :]
            except OSError as error:
                if error.errno not in _FULL or not self._throw_out_half():
                    raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DataError:
        mend = "make room there, or set data.cache.folder"
        return DataError(f"{self.folder} cannot be written ({error.strerror}); {mend}.")

    def _throw_out_half(self) -> bool:
        """Halves what is kept, for a disk that is smaller than `data.cache.max_gib`; False where nothing could go."""
        with self._locked("throwing_out.lock", wait=True):
            return self._throw_out(self.max_bytes // 2)[1] > 0

    def _reserve(self, part: Path, size: int) -> bool:
        """Makes room and takes it, by a file of that size without content; False where there is none for now."""
        with self._locked("throwing_out.lock", wait=True):
            left, _ = self._throw_out(size)
            if left + size > self.max_bytes:
                return False
            try:
                with part.open("wb") as file:
                    file.truncate(size)
            except OSError as error:
                raise self._unwritable(error) from error
            return True

    def _throw_out(self, needed: int) -> tuple[int, int]:
        """Deletes the least recently used files until `needed` bytes more fit; the bytes left, and files deleted."""
        files = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # a part that was finished a moment ago
                if not entry.name.endswith(".lock"):
                    stat = entry.stat()
                    files.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
        left, deleted = sum(size for _, size, _ in files), 0
        for _, size, path in sorted(files):
            if left + needed <= self.max_bytes:
                break
            # A part whose lock is free was left behind by a process that was killed.
            if path.suffix != ".part" or not self._is_locked(f"{path.stem}.lock"):
                path.unlink(missing_ok=True)
                left, deleted = left - size, deleted + 1
        return left, deleted

    def _is_locked(self, name: str) -> bool:
        with self._locked(name, wait=False) as mine:
            return not mine

    @contextmanager
    def _locked(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Holds a lock file; gives False where it is held by another and is not waited for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True


def _name(source: Source) -> str:
    """The name of a shard in the cache: another version of it has another one."""
    return f"{digest(source.url, str(source.size), source.version)}-{source.name}"


def _reader(store: Any, path: str, source: Source, offset: int) -> BinaryIO:
    """The shard, open at `offset`. Raises DataError where it is gone or is another one than was indexed."""
    try:
        info = store.info(path)
        if int(info["size"]) != source.size or version_of(info) != source.version:
            raise DataError(f"{source.url} has changed since it was listed; start again, and its index is made anew.")
        reader: BinaryIO = store.open(path, "rb", cache_type="readahead", block_size=_PIECE)
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{source.url} cannot be read ({error}).") from error
    reader.seek(offset)
    return reader


@contextmanager
def _telling(state: Callable[[], str], every: float = 30.0) -> Iterator[None]:
    """Says each `every` seconds how far a wait is."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(every):
            _log.warning("waiting for %s", state())

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
