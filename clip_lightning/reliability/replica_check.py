"""Checks before each save that ranks which should hold the same weights do.

A step that only one rank took, or a faulty device, makes weights differ, and from then on gradients of different
models are averaged silently. So the bits of every weight are summed on its device, and the sums of ranks that hold the
same rows are compared before anything is saved.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from clip_lightning.errors import AgreedNodeError
from clip_lightning.reliability.monitored_barrier import node_name
from clip_lightning.reliability.rank_group import RankGroup
from clip_lightning.reliability.shards import shard_of


class _Held(NamedTuple):
    node: str
    shard: int
    sums: tuple[int, ...]


@torch.no_grad()
def check_replicas(weights: Mapping[str, Tensor], ranks: RankGroup) -> None:
    """Compares weights by their bits; to be called on every rank, with the same names in the same order.

    Raises: AgreedNodeError with the ranks that differ from most, their nodes, and the first weight that differs.
    """
    if ranks.size == 1:
        return
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in weights.values()]
    sums = torch.stack([_bits(tensor).sum(dtype=torch.int64) for tensor in own]).tolist()
    shard = next((shard_of(tensor) for tensor in weights.values() if isinstance(tensor, DTensor)), 0)
    held = ranks.exchange(_Held(node_name(), shard, tuple(sums)))
    usual = {
        shard: Counter(one.sums for one in held if one.shard == shard).most_common(1)[0][0]
        for shard in {one.shard for one in held}
    }
    apart = [(rank, one) for rank, one in enumerate(held) if one.sums != usual[one.shard]]
    if not apart:
        return
    first = apart[0][1]
    name = next(n for n, a, b in zip(weights, first.sums, usual[first.shard], strict=True) if a != b)
    named = ", ".join(f"rank {rank} (node {one.node})" for rank, one in apart)
    others = "rank 0's" if ranks.size == 2 else "those of most ranks"
    raise AgreedNodeError(
        f"the weights of {named} differ from {others} (first {name.removeprefix('model.')}); nothing was saved, the "
        "same command resumes from the newest checkpoint; if it happens again, exclude that node"
    )


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as whole numbers."""
    return tensor.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])
