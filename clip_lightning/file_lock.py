"""Locks between the processes of one node and of several.

A lock is an `flock` on a file and, beside it, an owner file (`<name>.owner`) that is created exclusively. The kernel
frees the flock when its process ends, however it does; but on NFS or Lustre mounted with local locks it excludes only
the processes of its own node. There the owner file excludes the others: it holds host, job and process, and its time of
change is a heartbeat. An owner on this host is dead when its flock is free; one on another host, when its heartbeat is
older than `STALE` seconds by the file server's clock.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HEARTBEAT, STALE = 10.0, 60.0  # seconds
OWNER = ".owner"
_FIRST_LOOK, _LOOK = 0.01, 0.25  # seconds between attempts
# Descriptors of locks held by this process. A forked child would keep a lock after its parent's death: it closes them.
_HELD: set[int] = set()


def _close_held() -> None:
    for descriptor in _HELD:
        with suppress(OSError):
            os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_held)


class FileLock:
    """One lock; not reentrant."""

    def __init__(self, path: Path) -> None:
        """Args: path: the lock file, whose folder exists."""
        self.path, self.owner_path = path, path.with_name(path.name + OWNER)
        self._descriptor: int | None = None
        self._heart: tuple[threading.Event, threading.Thread] | None = None

    def acquire(self, keep_waiting: Callable[[], bool] = lambda: False) -> bool:
        """Takes the lock; False where another process has it.

        Args: keep_waiting: called between attempts; whether to wait longer.
        Raises: OSError where the file cannot be made, or the file system has no locks.
        """
        descriptor, pause = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), _FIRST_LOOK
        _HELD.add(descriptor)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._own(descriptor):
                        self._descriptor = descriptor
                        return True
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                except BlockingIOError:
                    pass
                if not keep_waiting():
                    return False
                time.sleep(pause)
                pause = min(_LOOK, 1.5 * pause)
        finally:
            if self._descriptor is None:
                _HELD.discard(descriptor)
                os.close(descriptor)

    def beat_by_thread(self) -> None:
        """Keeps the lock fresh for other hosts until the release, for whoever holds it for longer than a moment.

        The thread holds no lock that a forked child could need.
        """
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT):
                with suppress(OSError):
                    os.utime(self.owner_path)

        self._heart = stop, threading.Thread(target=beat, name="lock heartbeat", daemon=True)
        self._heart[1].start()

    def release(self) -> None:
        """Gives the lock back; does nothing where it is not held."""
        if self._heart is not None:
            self._heart[0].set()
            self._heart[1].join()
            self._heart = None
        if (descriptor := self._descriptor) is not None:
            self._descriptor = None
            self.owner_path.unlink(missing_ok=True)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may share the open file
            _HELD.discard(descriptor)
            os.close(descriptor)

    def moved(self, folder: Path) -> None:
        """Takes note that the lock file's folder was renamed to `folder`."""
        self.path, self.owner_path = folder / self.path.name, folder / self.owner_path.name

    def owner(self) -> str:
        """Who holds the lock, for messages; empty where that is not known."""
        return str(_read(self.owner_path).get("owner", ""))

    def _own(self, descriptor: int) -> bool:
        """Creates the owner file, in place of a dead owner's; False where one on another host is alive."""
        content = json.dumps({"host": socket.gethostname(), "owner": f"{_process()}, {_time()}"}).encode()
        for _ in range(3):
            try:
                owner = os.open(self.owner_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                if _is_alive(self.owner_path, descriptor):
                    return False
                self.owner_path.unlink(missing_ok=True)
                continue
            os.write(owner, content)
            os.close(owner)
            return True
        return False


def is_held(path: Path) -> bool:
    """Whether a process has the lock: one of this host, or one of another host whose heartbeat is fresh."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return _is_alive(path.with_name(path.name + OWNER), descriptor)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(descriptor)


def _is_alive(owner: Path, descriptor: int) -> bool:
    """Whether the owner is on another host and has a fresh heartbeat; `descriptor` is a file of the same server."""
    if _read(owner).get("host") == socket.gethostname():
        return False
    try:
        return _server_time(descriptor) - owner.stat().st_mtime < STALE
    except OSError:
        return False


def _server_time(descriptor: int) -> float:
    """The time of the file server, which may differ from this host's: seconds since 1970."""
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime
    except OSError:  # another user's file
        return time.time()


def _read(owner: Path) -> dict[str, str]:
    try:
        return dict(json.loads(owner.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _process() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}" + (f", job {job}" if job else "")


def _time() -> str:
    return time.strftime("since %Y-%m-%d %H:%M:%S %z")
