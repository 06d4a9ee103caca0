"""The lock of a run's directory: one process at a time works in it.

Any process can check at any time whether it is held, without blocking the run.
"""

import time
from pathlib import Path

from clip_lightning.errors import UserError
from clip_lightning.file_lock import FileLock, is_held

LOCK = ".lock"


def is_at_work(path: Path) -> bool:
    """Whether a process holds a run's directory, on this host or on another one."""
    return is_held(path / LOCK)


def release(lock: FileLock) -> None:
    """Releases a lock."""
    lock.release()


def acquire(path: Path, patience: float = 0.0) -> FileLock:
    """Takes the exclusive lock of a run's directory.

    The kernel releases it when the process ends, however it ends; for other hosts, its heartbeat stops.

    Args: patience: seconds to wait for another process to release it.
    Raises: UserError: another process holds it, or the file system has no locks.
    """
    lock = FileLock(path / LOCK)
    end = time.monotonic() + max(patience, 0.25)  # whoever only looks (is_at_work) holds it for an instant
    try:
        is_mine = lock.acquire(keep_waiting=lambda: time.monotonic() < end)
    except OSError as error:
        raise UserError(
            f"runs={path.parent}: this file system has no locks ({error.strerror}), without which two processes "
            "could write into one run; put runs= elsewhere, or mount it with locks (Lustre: -o flock)"
        ) from error
    if not is_mine:
        raise UserError(
            f"{path}: another process is at work in this run ({lock.owner()}); wait for it, or stop it. The lock of a "
            "process that died on another host ends after a minute"
        )
    lock.beat_by_thread()
    return lock
