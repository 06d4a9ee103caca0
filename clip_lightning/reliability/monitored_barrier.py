"""A barrier that names the ranks which do not reach it, and their nodes.

A collective that times out, or whose peer has exited, knows its own neighbour at best. Here every rank sets a key in
the store of torch.distributed; ranks without a key are missing.
"""

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from clip_lightning import compat
from clip_lightning.errors import AgreedNodeError, NodeError

# The key of ranks that meet for the first time.
REPORTED = "reported"
# Ranks that wait for the same rank give up within a step of one another.
_ANSWER_PATIENCE = timedelta(seconds=20)
# Messages of failed collectives: gloo raises a plain RuntimeError whose text depends on the place.
_COLLECTIVE = re.compile(r"gloo|nccl|time-?out|timed out|connection|pair closure", re.IGNORECASE)


def node_name() -> str:
    """Name of this node, as SLURM calls it inside a job."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def meet(done: str, patience: timedelta) -> None:
    """Waits until every rank has `done` something.

    Raises:
        AgreedNodeError: names the missing ranks, their nodes if they met before, and the nodes of the others.
        NodeError: rank 0, which holds the store, is missing.
    """
    store, size = compat.default_store(), dist.get_world_size()
    end = time.monotonic() + patience.total_seconds()
    missing, present = [], dict[str, None]()
    try:
        store.set(_key(done, dist.get_rank()), node_name())
        store.wait([_key(done, dist.get_rank())], patience)
    except (RuntimeError, dist.DistError) as error:
        raise NodeError("rank 0, which holds the store of the ranks, does not answer") from error
    for rank in range(size):
        try:
            store.wait([_key(done, rank)], timedelta(seconds=max(end - time.monotonic(), 0.01)))
            present[store.get(_key(done, rank)).decode()] = None
        except RuntimeError:
            met = _key(REPORTED, rank)
            missing.append(f"{rank}" + (f" (node {store.get(met).decode()})" if store.check([met]) else ""))
    if missing:
        raise AgreedNodeError(
            f"rank {', '.join(missing)} of {size} has not {done} within {patience.total_seconds():.0f} s; nodes that "
            f"have: {', '.join(present)}"
        )


@contextmanager
def on_failure() -> Iterator[None]:
    """Around collectives: if one fails and ranks do not answer, the error names those ranks.

    Raises: as `meet`.
    """
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        is_collective = isinstance(error, dist.DistError) or _COLLECTIVE.search(str(error))
        if is_collective and dist.is_initialized():
            try:
                meet("answered after a collective failed", _ANSWER_PATIENCE)
            except NodeError as absent:
                raise type(absent)(
                    f"{absent}; they hang or have exited; the same command resumes from the newest checkpoint"
                ) from error
        raise


def _key(done: str, rank: int) -> str:
    return f"clip_lightning/{done}/{rank}"
