"""Which rank this process is, and what ranks that a launcher outside started (torchrun, srun) have to wait for.

Lightning starts its ranks when rank 0 has checked everything; torchrun and srun start all at once. There the others
wait for rank 0's word: before it they would index the same data and train the same tokenizer at the same time, or begin
a run that rank 0 finds finished, or moves aside.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from clip_lightning.config.schema import ClusterConfig
from clip_lightning.errors import NodeError, UserError
from clip_lightning.parallel.process_group import FIRST_STEP_TIMEOUT
from clip_lightning.slurm import tasks as slurm_tasks
from clip_lightning.slurm.environment import SlurmEnvironment

_WORD, _HEARD = "clip_lightning/word", "clip_lightning/heard"
# Tells the ranks that Lightning starts which directory rank 0 has made.
_RUN_VARIABLE = "CLIP_LIGHTNING_RUN"
# Data may be indexed for hours; where rank 0 fails, the others hear it.
_PATIENCE = timedelta(days=1)


class _Place(NamedTuple):
    """Of this process among the ranks that a launcher outside started."""

    rank: int
    local_rank: int
    num_ranks: int


def rank_of_process() -> int:
    """The rank that a launcher gave this process: torchrun's, SLURM's, or Lightning's own; 0 without one."""
    for name in ("RANK", "LOCAL_RANK"):  # before SLURM's: inside a job both may have started ranks of their own
        if name in os.environ:
            return int(os.environ[name])
    task = slurm_tasks.step()
    return task.rank if task else 0


def starts_again_on_error() -> bool:
    """Whether a run that leaves as it was asked to, with that signal's code, would be started again at once."""
    return _is_torchrun()


def is_restart() -> bool:
    """Whether a launcher started this run again by itself, so that `fresh=true` has been obeyed already."""
    return any(int(os.environ.get(f"{launcher}_RESTART_COUNT", 0)) for launcher in ("TORCHELASTIC", "SLURM"))


@contextmanager
def leading() -> Iterator[None]:
    """Around all that rank 0 does; where it leaves without a word, by an error too, the others hear that and leave."""
    store = _store()  # the others may look for it from now on
    try:
        yield
    finally:
        if store is not None and _RUN_VARIABLE not in os.environ:
            store.set(_WORD, "")
            # Rank 0 may be the store's server, and stays for ranks that are not there yet.
            end = time.monotonic() + FIRST_STEP_TIMEOUT.total_seconds()
            while store.add(_HEARD, 0) < _place().num_ranks - 1 and time.monotonic() < end:
                time.sleep(0.05)


def are_started_outside() -> bool:
    """Whether torchrun or srun has started several ranks; otherwise Lightning starts those of this machine."""
    return _is_torchrun() or _task() is not None


def local_rank() -> int:
    """This process's rank among those that torchrun or srun started on its node."""
    return _place().local_rank


def check_launched(cluster: ClusterConfig) -> None:
    """Raises UserError where ranks on other machines would be waited for that nothing starts."""
    if cluster.nodes > 1 and not are_started_outside():
        raise UserError(
            f"cluster.nodes={cluster.nodes}: nothing starts processes on other machines from here; submit a job "
            "(cluster=slurm_8x8, slurm/README.md), start the ranks by srun or torchrun, or write cluster.nodes=1"
        )


def announce(path: Path) -> None:
    """Rank 0's word to the others: the directory in which they train."""
    os.environ[_RUN_VARIABLE] = str(path)
    if (store := _store()) is not None:
        store.set(_WORD, str(path))


def directory(path: Path) -> Path | None:
    """Where rank 0 trains, on the other ranks; None where it does not.

    Args:
        path: where the config leads, for ranks that are told nothing else.
    Raises: NodeError where rank 0 is gone, or was never there.
    """
    try:
        if (store := _store()) is None:
            return Path(os.environ.get(_RUN_VARIABLE, path))
        store.wait([_WORD], _PATIENCE)
        word = store.get(_WORD).decode()
        store.add(_HEARD, 1)
    except (RuntimeError, dist.DistError) as error:
        raise NodeError("rank 0 was lost before it said where to train; what it printed says why") from error
    return Path(word) if word else None


def meet(on_gpu: bool) -> None:
    """Makes the process group of ranks that stand already, which Lightning then finds.

    torchrun 2.14 keeps its store from one attempt to the next, and a restarted rank that looks there for its peers
    finds the addresses of the dead: every attempt has keys of its own here.
    """
    if (store := _store()) is not None and not dist.is_initialized():
        place = _place()
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.num_ranks,
            timeout=FIRST_STEP_TIMEOUT,
            device_id=torch.device("cuda", place.local_rank) if on_gpu else None,
        )


def _is_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _task() -> slurm_tasks.Step | None:
    """The task of srun that this rank is; None where another launcher started it, or there is but one."""
    task = None if {"RANK", "LOCAL_RANK"} & os.environ.keys() else slurm_tasks.step()
    return task if task is not None and task.num_tasks > 1 else None


def _place() -> _Place:
    if task := _task():
        return _Place(task.rank, task.local_rank, task.num_tasks)
    return _Place(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


@cache
def _store() -> dist.Store | None:
    """The store at which the ranks of this attempt meet; kept, since rank 0 may be its server.

    None where the ranks are Lightning's to start.
    """
    if _is_torchrun():
        store, _, _ = next(dist.rendezvous("env://"))
        return dist.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    if (task := _task()) is None:
        return None
    at = SlurmEnvironment(task)
    return dist.TCPStore(
        at.main_address,
        at.main_port,
        is_master=task.rank == 0,
        timeout=FIRST_STEP_TIMEOUT,
        wait_for_workers=False,
    )
