"""Rank, world size, and the collectives that loss, training, evaluation and reliability share; none has autograd.

All use torch.distributed's default group when it is initialised and are the identity for one process. In a loss every
rank holds an equal share of the global batch, in the order of the ranks. Shapes: b pairs on this rank, W ranks,
N = W x b.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_gather(share: Tensor) -> Tensor:
    """Every rank's share [b, ...], one after the other: [N, ...]. One process gets its own tensor back."""
    _, world = rank_and_world()
    if world == 1:
        return share
    gathered = share.new_empty(world * share.shape[0], *share.shape[1:])
    dist.all_gather_single(gathered, share.contiguous())
    return gathered


def reduce_scatter(partial: Tensor) -> Tensor:
    """This rank's share [b, ...] of the sum of all ranks' [N, ...]."""
    _, world = rank_and_world()
    if world == 1:
        return partial
    share = partial.new_empty(partial.shape[0] // world, *partial.shape[1:])
    dist.reduce_scatter_single(share, partial.contiguous())
    return share


def all_reduce_max(values: Tensor) -> Tensor:
    """The largest value over the ranks, element by element, in place."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over the ranks, element by element, in place."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def exchange(value: Value, group: dist.ProcessGroup | None = None) -> list[Value]:
    """Every rank's value, rank after rank, on all ranks of `group` (the default group if None).

    Values are pickled: for a few numbers now and then, not for tensors of a step.
    """
    if rank_and_world()[1] == 1:
        return [value]
    values = [value] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [m, ...] of all ranks, rank after rank; unlike in `all_gather`, m may differ between ranks."""
    sizes = all_gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = all_gather(padded).unflatten(0, (len(sizes), -1))
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def padded_share(num_items: int) -> tuple[list[int], int]:
    """The items r, r + W, r + 2W, ... of this rank r of W, and how many of them count; the rest repeat item 0.

    Shares are padded to one length, so that every rank calls the model equally often: a sharded model gathers its
    weights in each call and would wait forever for a rank without items.
    """
    rank, world = rank_and_world()
    mine = list(range(rank, num_items, world))
    padding = -(-num_items // world) - len(mine)
    return mine + [0] * padding, len(mine)
