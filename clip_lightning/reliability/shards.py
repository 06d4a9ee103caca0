"""A run's state as a tree of dictionaries, lists and tensors, and the rows of sharded tensors that each rank keeps.

Rank 0 saves the tree with its own rows; every other shard saves its rows by their paths in that tree. FSDP2 cuts along
the first axis, shard after shard, so rows put one after the other are the tensor: a state that n ranks saved is laid
out on any number of ranks by the shape of what is there, and no rank reads more than its own rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

KeyPath = tuple[str | int, ...]
Rows = dict[KeyPath, Tensor]


@dataclass(frozen=True)
class SavedRows:
    """A saved tensor whose rows lie in the files of several ranks, in this order."""

    pieces: tuple[Tensor, ...]

    @property
    def shape(self) -> torch.Size:
        """Of the whole tensor."""
        return torch.Size((sum(len(piece) for piece in self.pieces), *self.pieces[0].shape[1:]))

    def rows(self, start: int, stop: int) -> Tensor:
        """A copy of the rows from `start` to `stop`."""
        found, first = [self.pieces[0][:0]], 0
        for piece in self.pieces:
            found.append(piece[max(0, start - first) : max(0, stop - first)])
            first += len(piece)
        return torch.cat(found)

    def whole(self) -> Tensor:
        """A copy of all rows."""
        return torch.cat(self.pieces)


def on_host(tree: Any) -> Any:
    """A copy of the tree on the CPU; of a sharded tensor, this rank's rows."""
    return _mapped(tree, lambda _, tensor: _copy(tensor))


def own_rows(tree: Any) -> tuple[int, Rows]:
    """Which shard this rank holds of a tree's sharded tensors, and copies of its rows on the CPU.

    Ranks that repeat another's rows have none.
    """
    shard, rows = 0, {}

    def visit(path: KeyPath, tensor: Tensor) -> None:
        nonlocal shard
        if isinstance(tensor, DTensor):
            shard, _, is_repeat = _place(tensor)
            if not is_repeat:
                rows[path] = _copy(tensor)

    _mapped(tree, visit)
    return shard, rows


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree's tensors; of a sharded one those of all shards."""
    sizes: list[int] = []
    _mapped(tree, lambda _, tensor: sizes.append(tensor.numel() * tensor.element_size()))
    return sum(sizes)


def shard_of(tensor: DTensor) -> int:
    """Which of its shards this rank holds."""
    return _place(tensor)[0]


def with_rows(tree: Any, shards: list[Rows]) -> Any:
    """Rank 0's tree in which every sharded tensor is the `SavedRows` of all shards; `shards` are those from 1 on."""

    def joined(path: KeyPath, tensor: Tensor) -> Tensor | SavedRows:
        is_sharded = bool(shards) and path in shards[0]
        return SavedRows((tensor, *(shard[path] for shard in shards))) if is_sharded else tensor

    return _mapped(tree, joined)


def whole(tree: Any) -> Any:
    """The tree with all `SavedRows` concatenated."""
    return _mapped(tree, lambda _, found: found.whole() if isinstance(found, SavedRows) else found)


@torch.no_grad()
def laid_out(saved: Tensor | SavedRows, like: Tensor) -> Tensor:
    """A copy of a saved tensor as `like` lies: device, dtype, strides, and of a sharded one this rank's rows.

    A fused optimizer requires moments to have the strides of their parameter.
    """
    if not isinstance(like, DTensor):
        return torch.empty_like(like).copy_(saved.whole() if isinstance(saved, SavedRows) else saved)
    local = like.to_local()
    shard, num_shards, _ = _place(like)
    start = min(len(like), shard * -(-len(like) // num_shards))
    stop = start + len(local)
    rows = saved.rows(start, stop) if isinstance(saved, SavedRows) else saved[start:stop]
    return DTensor.from_local(
        torch.empty_like(local).copy_(rows),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def _place(tensor: DTensor) -> tuple[int, int, bool]:
    """Which shard of how many this rank holds, and whether it repeats another rank's."""
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    shard, num_shards, is_repeat = 0, 1, False
    for index, size, placement in zip(coordinate, tensor.device_mesh.shape, tensor.placements, strict=True):
        if placement.is_shard():
            assert placement == Shard(0), "FSDP2 cuts along the first axis by default"
            shard, num_shards = index, size
        else:
            is_repeat = is_repeat or index > 0
    return shard, num_shards, is_repeat


def _copy(tensor: Tensor) -> Tensor:
    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.detach().to("cpu", copy=True)


def _mapped(tree: Any, change: Callable[[KeyPath, Any], Any], path: KeyPath = ()) -> Any:
    """The tree with every tensor replaced; dictionaries and lists are new."""
    if isinstance(tree, Mapping):
        return {name: _mapped(part, change, (*path, name)) for name, part in tree.items()}
    if isinstance(tree, list):
        return [_mapped(part, change, (*path, k)) for k, part in enumerate(tree)]
    return change(path, tree) if isinstance(tree, Tensor | SavedRows) else tree
