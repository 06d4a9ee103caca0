"""Which rank it is that the others wait for, so that an error names a machine.

A collective that times out, or whose peer is gone, knows its own neighbour at best. The store at which the ranks met is
asked instead: there every rank leaves a word, and who does not is known by its absence.
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

# The word of ranks that meet for the first time.
REPORTED = "reported"
# Ranks that wait for the same rank give up within a step of one another.
_ANSWER_PATIENCE = timedelta(seconds=20)
# How a failed collective may sound: gloo raises a plain RuntimeError, whose words depend on where it was.
_COLLECTIVE = re.compile(r"gloo|nccl|time-?out|timed out|connection|pair closure", re.IGNORECASE)


def node_name() -> str:
    """This machine's, as SLURM calls it where it runs the job."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def meet(done: str, patience: timedelta) -> None:
    """Every rank leaves a word when it has `done` something, and waits for those of the others.

    Raises:
        AgreedNodeError: with the missing ranks, by node where they have met before, and the nodes of those that came.
        NodeError: rank 0 is missing, and with it the store.
    """
    store, size = compat.default_store(), dist.get_world_size()
    end = time.monotonic() + patience.total_seconds()
    missing, present = [], dict[str, None]()
    try:
        store.set(_key(done, dist.get_rank()), node_name())
        store.wait([_key(done, dist.get_rank())], patience)
    except (RuntimeError, dist.DistError) as error:
        raise NodeError("rank 0, at whose store the ranks meet, does not answer") from error
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
    """Around what ranks do together: where a collective fails and ranks do not answer, the error is one of theirs.

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
                    f"{absent}; what is missing hangs or is gone; the same command goes on from the newest checkpoint"
                ) from error
        raise


def _key(done: str, rank: int) -> str:
    return f"clip_lightning/{done}/{rank}"
