"""Which rank this process is, and how ranks that torchrun or srun started wait for rank 0.

Lightning starts its ranks after rank 0 has prepared the run; torchrun and srun start all ranks at once. Those wait here
until rank 0 has indexed the data, trained the tokenizer and written the config: otherwise they would do the same work
at the same time, or start a run that rank 0 finds finished or moves aside.
"""

import json
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

from clip_lightning.config import compose
from clip_lightning.config.schema import ClusterConfig
from clip_lightning.errors import NodeError, UserError
from clip_lightning.parallel.process_group import FIRST_STEP_TIMEOUT
from clip_lightning.run.directory import START_CONFIG
from clip_lightning.slurm import tasks as slurm_tasks
from clip_lightning.slurm.environment import SlurmEnvironment

# Keys of the store: the run's directory, empty where there is nothing to train; how many ranks have read it.
_DIRECTORY, _NUM_READ = "clip_lightning/directory", "clip_lightning/num_read"
# The run's directory, for ranks that Lightning starts.
_DIRECTORY_VARIABLE = "CLIP_LIGHTNING_RUN"
# Indexing may take hours. A rank 0 that fails sends an empty directory before.
_PREPARATION_TIMEOUT = timedelta(days=1)


class _Place(NamedTuple):
    """Of this process among the ranks that torchrun or srun started."""

    rank: int
    local_rank: int
    num_ranks: int


def restarts_on_error() -> bool:
    """Whether the launcher would restart at once a run that exits with a signal's exit code."""
    return _is_torchrun()


def is_restart() -> bool:
    """Whether a launcher restarted this run by itself, so that `fresh=true` has been applied already."""
    return any(int(os.environ.get(f"{launcher}_RESTART_COUNT", 0)) for launcher in ("TORCHELASTIC", "SLURM"))


def are_started_outside() -> bool:
    """Whether torchrun or srun has started several ranks; otherwise Lightning starts those of this node."""
    return _is_torchrun() or _task() is not None


def local_rank() -> int:
    """This process's rank among those that torchrun or srun started on its node."""
    return _place().local_rank


def check_launched(cluster: ClusterConfig) -> None:
    """Raises UserError where the run needs ranks on other nodes that nothing starts."""
    if cluster.nodes > 1 and not are_started_outside():
        raise UserError(
            f"cluster.nodes={cluster.nodes}: nothing starts processes on other nodes from here; submit a job "
            "(cluster=slurm_8x8, slurm/README.md), start the ranks by srun or torchrun, or write cluster.nodes=1"
        )


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Around all that rank 0 does. If it exits before `release_ranks`, the waiting ranks exit too, with code 0."""
    store = _store()  # the other ranks connect to it from here on
    try:
        yield
    finally:
        if store is not None and _DIRECTORY_VARIABLE not in os.environ:
            store.set(_DIRECTORY, "")
            # The store may live in this process: wait for ranks that have not connected yet.
            end = time.monotonic() + FIRST_STEP_TIMEOUT.total_seconds()
            while store.add(_NUM_READ, 0) < _place().num_ranks - 1 and time.monotonic() < end:
                time.sleep(0.05)


def release_ranks(path: Path) -> None:
    """Rank 0 has prepared the run in `path`: its other ranks read their config there and begin."""
    os.environ[_DIRECTORY_VARIABLE] = str(path)
    os.environ[compose.ARGUMENTS_VARIABLE] = json.dumps(["--frozen", str(path / START_CONFIG)])
    if (store := _store()) is not None:
        store.set(_DIRECTORY, str(path))


def wait_for_rank_zero(path: Path) -> Path | None:
    """The run's directory, on ranks other than 0, when rank 0 has prepared it; None where there is nothing to train.

    Args:
        path: the directory by this rank's own config, for ranks whose rank 0 cannot send one.

    Raises:
        NodeError: rank 0 is gone, or was never there.
    """
    try:
        if (store := _store()) is None:
            return Path(os.environ.get(_DIRECTORY_VARIABLE, path))
        store.wait([_DIRECTORY], _PREPARATION_TIMEOUT)
        directory = store.get(_DIRECTORY).decode()
        store.add(_NUM_READ, 1)
    except (RuntimeError, dist.DistError) as error:
        raise NodeError("rank 0 was lost while it prepared the run; its own output gives the reason") from error
    return Path(directory) if directory else None


def connect_ranks(on_gpu: bool) -> None:
    """Makes the process group of ranks that torchrun or srun started; Lightning finds it.

    torchrun 2.14 keeps its store from one attempt to the next, and a restarted rank that looks there for its peers
    finds the addresses of the dead ones: every attempt has keys of its own here.
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
    """The task of srun that this rank is; None where another launcher started it, or there is only one."""
    task = None if {"RANK", "LOCAL_RANK"} & os.environ.keys() else slurm_tasks.step()
    return task if task is not None and task.num_tasks > 1 else None


def _place() -> _Place:
    if task := _task():
        return _Place(task.rank, task.local_rank, task.num_tasks)
    return _Place(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))


@cache
def _store() -> dist.Store | None:
    """The store that connects the ranks of this attempt; cached, since it may live in rank 0's process.

    None where Lightning starts the ranks.
    """
    if _is_torchrun():
        store, _, _ = next(dist.rendezvous("env://"))
        return dist.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    if (task := _task()) is None:
        return None
    environment = SlurmEnvironment(task)
    return dist.TCPStore(
        environment.main_address,
        environment.main_port,
        is_master=task.rank == 0,
        timeout=FIRST_STEP_TIMEOUT,
        wait_for_workers=False,
    )
