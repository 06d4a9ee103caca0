"""The lock of a run's directory: one process at a time works in it.

Any process can check at any time whether it is held, without blocking the run.
"""

import fcntl
import os
import socket
import time
from pathlib import Path

from clip_lightning.errors import UserError

LOCK = ".lock"


def is_at_work(path: Path) -> bool:
    """Whether a process holds the lock of a run's directory, on this node or another one of the file system."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks, where no run can begin
    finally:
        os.close(descriptor)


# Descriptors of locks held by this process. A forked loader process closes them, or it would hold the lock too.
_HELD: set[int] = set()


def _close_held() -> None:
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_close_held)


def release(descriptor: int) -> None:
    """Releases a lock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
    _HELD.discard(descriptor)


def acquire(path: Path, patience: float = 0.0) -> int:
    """Takes the exclusive lock of a run's directory; the kernel releases it when the process ends, however it ends.

    Args: patience: seconds to wait for another process to release it.
    Returns: a descriptor for `release`.
    Raises: UserError: another process holds it, or the file system has no locks.
    """
    file = path / LOCK
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    end = time.monotonic() + max(patience, 0.25)  # whoever only looks (is_at_work) holds it for an instant
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() < end:
                time.sleep(0.05)
                continue
            os.close(descriptor)
            owner = file.read_text(encoding="utf-8").strip()
            raise UserError(
                f"{path}: another process is at work in this run ({owner}); wait for it, or stop it"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"runs={path.parent}: this file system gives no locks ({error.strerror}), without which two processes "
                "could write into one run; put runs= elsewhere, or mount it with locks (Lustre: -o flock)"
            ) from error
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _HELD.add(descriptor)
    return descriptor
