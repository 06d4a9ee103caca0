"""Where runs lie: the directory of a config's run, earlier runs of its name, and the links to them."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from clip_lightning.config import command_line, identity
from clip_lightning.config.schema import Config
from clip_lightning.reliability import lock
from clip_lightning.reliability.atomic_files import sync_folder

# In `slurm/` of a run's directory, beside the frozen config: the number of its newest job.
JOB = "job.txt"
# Folder of the sweeps beside their runs; environment variable with the directory of the sweep in progress.
SWEEPS, SWEEP_VARIABLE = "sweeps", "CLIP_LIGHTNING_SWEEP"


def directory_of(config: Config, argv: Sequence[str] = ()) -> Path:
    """Where a config's run lives, whether or not it exists.

    Args: argv: the arguments of the command. A submitted job stays where it was submitted: its name may follow from a
        path of data, which may lead elsewhere on the job's node.
    """
    frozen = command_line.split(argv)[0].frozen
    if frozen is not None and (frozen.parent / JOB).exists():
        return frozen.absolute().parent.parent
    return Path(config.runs).expanduser().absolute() / identity.run_name(config)


def move_aside(path: Path) -> Path | None:
    """Renames an earlier run to `<name>.old-<k>`, so that nothing is lost; returns the new path, None without a run.

    Raises:
        UserError: a process is at work in it.
    """
    if not path.exists():
        return None
    held = lock.acquire(path)
    taken = {int(old.suffix[5:]) for old in path.parent.glob(f"{path.name}.old-*") if old.suffix[5:].isdecimal()}
    aside = path.with_name(f"{path.name}.old-{max(taken, default=0) + 1}")
    path.rename(aside)
    sync_folder(path.parent)
    held.moved(aside)
    lock.release(held)
    return aside


def point_to(target: Path, link: Path) -> None:
    """Makes `link` a relative symbolic link to `target`, in one step; a file or folder of that name is left alone."""
    if link.exists() and not link.is_symlink():
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)
