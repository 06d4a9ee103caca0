"""How a run's directory stands, read by anybody at any time: no torch, no lock that could hinder the run.

`status.json` says what the run noted last; the lock says whether a process is still at work. A run that notes
"running" and that nobody holds was interrupted.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

LOCK = ".lock"


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file of ours; empty when there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def is_at_work(path: Path) -> bool:
    """Whether a process holds a run's directory, on this machine or wherever the file system carries locks."""
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


def standing(path: Path) -> tuple[str, str]:
    """A run's state and its reason: finished, running, interrupted, stopped, failed, submitted (a job is
    to start it), or waiting without any start."""
    noted = read_json(path / "status.json")
    status, reason = noted.get("status", "waiting"), noted.get("reason", "")
    if status != "finished" and is_at_work(path):
        return "running", ""
    return ("interrupted", "its process is gone") if status == "running" else (status, reason)
