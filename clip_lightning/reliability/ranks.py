"""The ranks that write one checkpoint together, over a channel of their own that a background thread may use."""

from typing import Any

import torch.distributed as dist

from clip_lightning.distributed import exchange


class Ranks:
    """This rank among those that write.

    Attributes:
        rank: of this process; 0 leads.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, group: Any = None) -> None:
        """Args: group: a process group of gloo; None: this rank is alone."""
        self.rank, self._group = rank, group
        self.size = 1 if group is None else dist.get_world_size(group)

    @classmethod
    def connected(cls) -> "Ranks":
        """All ranks of torch.distributed; to be called on each of them.

        The group's name keeps it out of the time-out of training's collectives: a write may take longer than a step.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.new_group(backend="gloo", group_desc="checkpoint"))

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's value, rank after rank; waits for all of them."""
        if self._group is None:
            return [value]
        return exchange(value, self._group)
