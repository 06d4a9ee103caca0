"""What happens when a rank that Lightning has started ends with an error: one line, the status, and an exit code.

Lightning's own thread kills the main process silently in that case. torchrun and srun watch the ranks they start.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

from clip_lightning import compat
from clip_lightning.reliability.status import read_json, write_status

POLL_SECONDS = 0.5
# Between a rank's end and the end of this process, which may end by the same error, with its own message.
GRACE_SECONDS = 5.0
EXIT_CODE = 1


def watch_ranks(path: Path, resume: str, notify: Callable[[str], None]) -> None:
    """Watches the ranks that Lightning starts from here on. To be called on rank 0, before the fit.

    Args:
        path: the run's directory.
        resume: the command that resumes the run.
        notify: prints a line.
    """

    def launch(processes: "list[Popen[bytes]]") -> None:
        threading.Thread(target=_watch, args=(processes, path, resume, notify), name="rank-watch", daemon=True).start()

    compat.replace_rank_observer(launch)


def describe_exit(rank: int, code: int) -> str:
    """How a process ended: by a signal (minus its number) or with an exit code."""
    if code >= 0:
        return f"rank {rank} exited with code {code}"
    name = signal.Signals(-code).name
    memory = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
    return f"rank {rank} was killed by {name}{memory}"


def _watch(processes: "list[Popen[bytes]]", path: Path, resume: str, notify: Callable[[str], None]) -> None:
    while True:
        codes = [process.poll() for process in processes]
        if all(code == 0 for code in codes):
            return
        if failed := [rank for rank, code in enumerate(codes, 1) if code]:
            break
        time.sleep(POLL_SECONDS)
    rank, code = failed[0], codes[failed[0] - 1] or 0
    if code > 0:
        time.sleep(GRACE_SECONDS)
    sentence = describe_exit(rank, code)
    if read_json(path / "status.json").get("status") != "failed":  # otherwise the rank has written a better reason
        write_status(path, "failed", sentence)
    notify(f"{sentence}; the other ranks are stopped; resume from the newest checkpoint with: {resume}")
    for process in processes:
        process.kill()
    sys.stdout.flush()
    os._exit(EXIT_CODE)
