"""The state of a run, readable by any process at any time, without torch and without blocking the run.

`status.json` holds the last status that the run wrote; the lock shows whether a process is running. A run with status
"running" and without a lock was interrupted.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clip_lightning.reliability.atomic_files import write_atomically
from clip_lightning.reliability.lock import is_at_work


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; empty if the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def standing(path: Path) -> tuple[str, str]:
    """A run's state and its reason: finished, running, interrupted, stopped, failed, submitted (a job is
    to start it), or waiting without any start."""
    noted = read_json(path / "status.json")
    status, reason = noted.get("status", "waiting"), noted.get("reason", "")
    if status != "finished" and is_at_work(path):
        return "running", ""
    return ("interrupted", "its process is gone") if status == "running" else (status, reason)


def write_status(path: Path, status: str, reason: str = "", **numbers: int) -> None:
    """Writes the status of a run; numbers such as samples_seen keep their values until they are set again."""
    before = read_json(path / "status.json")
    content = {**before, "status": status, "reason": reason, "time": now(), **numbers}
    write_atomically(path / "status.json", json.dumps(content, indent=1) + "\n")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
