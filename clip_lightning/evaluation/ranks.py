"""How the ranks of torch.distributed share an evaluation; alone, one rank does everything.

Shares are padded to one length, so that every rank calls the model equally often: a sharded model gathers its weights
in each call and would wait for ever for a rank that had nothing left to do.
"""

import torch
from torch import Tensor

from clip_lightning.distributed import all_gather, rank_and_world


def share(num_items: int) -> tuple[list[int], int]:
    """The items r, r + W, r + 2W, ... of this rank r of W, and how many of them count; the rest repeat item 0."""
    rank, world = rank_and_world()
    mine = list(range(rank, num_items, world))
    padding = -(-num_items // world) - len(mine)
    return mine + [0] * padding, len(mine)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [m, ...] of all ranks, rank after rank; unlike in a loss, m may differ between ranks."""
    sizes = all_gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = all_gather(padded).unflatten(0, (len(sizes), -1))
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
