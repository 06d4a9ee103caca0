"""How the ranks of torch.distributed share an evaluation; alone, one rank does everything.

Shares are padded to one length, so that every rank calls the model equally often: a sharded model gathers its weights
in each call and would wait for ever for a rank that had nothing left to do.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks: 0 and 1 without torch.distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(num_items: int) -> tuple[list[int], int]:
    """The items r, r + W, r + 2W, ... of this rank r of W, and how many of them count; the rest repeat item 0."""
    rank, world = rank_and_world()
    mine = list(range(rank, num_items, world))
    padding = -(-num_items // world) - len(mine)
    return mine + [0] * padding, len(mine)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over ranks, on every rank, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [m, ...] of all ranks, rank after rank; m may differ between ranks."""
    if not dist.is_initialized():
        return rows
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank()] = len(rows)
    sizes = sum_over_ranks(counts).tolist()
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
