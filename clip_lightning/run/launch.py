"""Which rank this process is, and what ranks that a launcher outside started (torchrun) have to wait for.

Lightning starts its ranks when rank 0 has checked everything; torchrun starts all at once. There the others wait for
rank 0's word: before it they would index the same data and train the same tokenizer at the same time, or begin a run
that rank 0 finds finished.
"""

import os
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist

from clip_lightning.parallel import slurm_tasks
from clip_lightning.parallel.process_group import FIRST_STEP_TIMEOUT

_KEY = "clip_lightning"
# Tells the ranks that Lightning starts which directory rank 0 has made.
_RUN_VARIABLE = "CLIP_LIGHTNING_RUN"
# Data may be indexed for hours; when rank 0 fails, torchrun ends the others.
_PATIENCE = timedelta(days=1)


def rank_of_process() -> int:
    """The rank that a launcher gave this process: torchrun's, SLURM's, or Lightning's own; 0 without one."""
    for name in ("RANK", "LOCAL_RANK"):  # before SLURM's: inside a job both may have started ranks of their own
        if name in os.environ:
            return int(os.environ[name])
    task = slurm_tasks.step()
    return task.rank if task else 0


def is_restart() -> bool:
    """Whether a launcher started this run again by itself, so that `fresh=true` has been obeyed already."""
    return any(int(os.environ.get(f"{launcher}_RESTART_COUNT", 0)) for launcher in ("TORCHELASTIC", "SLURM"))


def announce(path: Path | None) -> None:
    """Rank 0's word to the others: in which directory they train; None: there is nothing to train."""
    if path is not None:
        os.environ[_RUN_VARIABLE] = str(path)
    if _is_torchrun():
        _store().set(_KEY, str(path or ""))


def directory(path: Path) -> Path | None:
    """Where rank 0 trains, on the other ranks; None where it does not.

    Args:
        path: where the config leads, for ranks that are told nothing else.
    """
    if not _is_torchrun():
        return Path(os.environ.get(_RUN_VARIABLE, path))
    _store().wait([_KEY], _PATIENCE)
    word = _store().get(_KEY).decode()
    return Path(word) if word else None


def meet(on_gpu: bool) -> None:
    """Makes the process group of ranks that torchrun started, which Lightning then finds.

    torchrun 2.14 keeps its store from one attempt to the next, and a restarted rank that looks there for its peers
    finds the addresses of the dead: every attempt has keys of its own here.
    """
    if _is_torchrun() and not dist.is_initialized():
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=_store(),
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=FIRST_STEP_TIMEOUT,
            device_id=torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else None,
        )


def _is_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@cache
def _store() -> dist.Store:
    """The store at which the ranks of this attempt meet; kept, since rank 0 may be its server."""
    store, _, _ = next(dist.rendezvous("env://"))
    return dist.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
