"""Groups of gloo that all ranks share beside training's own, whatever the device; each is made once per process.

Each one connects every rank with every other, so there are only two: one for the main thread, one for the thread that
writes checkpoints.
"""

from typing import Any

import torch.distributed as dist

from clip_lightning.distributed import exchange, rank_and_world

_made: dict[str, tuple[Any, Any]] = {}


class RankGroup:
    """This rank among those that write one checkpoint together, over a channel that a background thread may use.

    Attributes:
        rank: of this process.
        size: number of ranks.
    """

    def __init__(self, rank: int = 0, group: Any = None) -> None:
        """Args: group: a process group of gloo; None: this rank is alone."""
        self.rank, self._group = rank, group
        self.size = 1 if group is None else dist.get_world_size(group)

    @classmethod
    def connected(cls) -> "RankGroup":
        """All ranks of torch.distributed; to be called on each of them.

        The group's name excludes it from the time-out of training's collectives: a write may take longer than a step.
        """
        group = _group("checkpoint")
        return cls() if group is None else cls(dist.get_rank(), group)

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, rank after rank; waits for all of them."""
        if self._group is None:
            return [value]
        return exchange(value, self._group)


def control_group() -> Any:
    """The group of the main thread for small messages on the CPU; None with one process."""
    return _group("control")


def _group(name: str) -> Any:
    """A group of all ranks, made at the first call; to be called on every rank."""
    if rank_and_world()[1] == 1:
        return None
    world = dist.group.WORLD
    made_for, group = _made.get(name, (None, None))
    if made_for is not world:
        group = dist.new_group(backend="gloo", group_desc=name)
        _made[name] = world, group
    return group
