"""Leaf: which folders hold runs, for everything that reads many of them."""

import os
import re
from pathlib import Path

from clip_lightning.errors import UserError

CONFIG, STATUS, FIRST_STEP = "config.yaml", "status.json", "first_step.json"
# Config keys that say where a run is and how it was started: no property of it.
PLACES = ("runs", "fresh", "dry_run")
_ASIDE = re.compile(r"\.old-\d+$")


def run_folders(path: Path, marker: str = CONFIG) -> list[Path]:
    """The directories of runs in a folder, by name; neither links to them nor those that `fresh=true` has put aside.

    Args: marker: the file that makes a directory a run: its config, or its status, which a submitted run has first.
    """
    return [path / name for name in candidates(path) if os.path.exists(f"{path}/{name}/{marker}")]  # noqa: PTH110


def check_run(path: Path) -> None:
    """Raises UserError where a folder is not the directory of a run."""
    if not (path / CONFIG).exists():
        raise UserError(f"{path} is not the directory of a run: it has no {CONFIG}")


def candidates(path: Path) -> list[str]:
    """Names of the folders in `path` that may be runs; a marker is not looked for."""
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(name for name in names if not _ASIDE.search(name))
