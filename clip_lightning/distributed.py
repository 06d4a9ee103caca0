"""The collectives of the losses, without autograd: each loss knows its own gradient.

All use torch.distributed's default group when it is initialised and are the identity for one process. Every rank holds
an equal share of the global batch, in the order of the ranks. Shapes: b pairs on this rank, W ranks, N = W x b.
"""

import torch
import torch.distributed as dist
from torch import Tensor


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
    """Sums [N, ...] over the ranks and gives each its own share [b, ...]."""
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


def share_of(source: int, own: Tensor) -> Tensor:
    """The share [b, ...] of rank `source`, on every rank."""
    rank, world = rank_and_world()
    if world == 1:
        return own
    share = own.contiguous() if source == rank else torch.empty_like(own, memory_format=torch.contiguous_format)
    dist.broadcast(share, src=source)
    return share


def sum_at(destination: int, partial: Tensor) -> None:
    """Sums over the ranks in place at rank `destination`; the other ranks' tensors are spent."""
    if rank_and_world()[1] > 1:
        dist.reduce(partial, dst=destination, op=dist.ReduceOp.SUM)
