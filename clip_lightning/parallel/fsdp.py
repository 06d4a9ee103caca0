"""FSDP2: every rank keeps its rows of each weight, gradient and moment; a unit is gathered only while it computes.

A unit is one block, then the rest of each tower, then the root with the logit scale: every weight belongs to one, since
a weight outside all units would never be reduced. The towers are units so that evaluation may call one without the
other. The weights are gathered and the gradients reduced in float32, and autocast lowers the precision inside as it
does under DDP: one step computes the same under every strategy. HSDP shards inside groups of ranks and repeats the
groups.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from clip_lightning.config.schema import ClusterConfig
from clip_lightning.model.clip import CLIP
from clip_lightning.parallel.process_group import FIRST_STEP_TIMEOUT


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with a mesh of ours: (shards) or (replicas, shards)."""

    def __init__(self, num_ranks: int, shard_size: int) -> None:
        """Args: shard_size: neighbouring ranks that hold the weights once between them; divides `num_ranks`."""
        super().__init__(data_parallel_size=num_ranks, tensor_parallel_size=1, timeout=FIRST_STEP_TIMEOUT)
        self.num_ranks, self.shard_size = num_ranks, shard_size
        self._sharded: FSDPModule | None = None

    def shard(self, model: CLIP) -> None:
        """Shards a model in place, once; called by the module's `configure_model`, after the ranks have connected."""
        if self._sharded is None:
            shape, names = (self.num_ranks // self.shard_size, self.shard_size), ("replicate", "shard")
            mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
            self._sharded = apply(model, mesh if shape[0] > 1 else mesh["shard"])

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, replicas keep their own sums; shards are always reduced: no rank ever holds a full gradient."""
        assert self._sharded is not None
        self._sharded.set_requires_all_reduce(False)
        try:
            yield
        finally:
            self._sharded.set_requires_all_reduce(True)


def strategy(cluster: ClusterConfig) -> ShardedStrategy:
    """What Lightning's Trainer takes for `fsdp` and `hsdp`."""
    num_ranks = cluster.nodes * cluster.devices
    return ShardedStrategy(num_ranks, shard_size(cluster))


def shard_size(cluster: ClusterConfig) -> int:
    """Ranks that hold the weights once between them; 1 where every rank has all of them."""
    num_ranks = cluster.nodes * cluster.devices
    return {"fsdp": num_ranks, "hsdp": cluster.shard_size or cluster.devices}.get(cluster.strategy, 1)


def apply(model: CLIP, mesh: DeviceMesh) -> FSDPModule:
    """Shards a model whose weights are loaded; names in the state dict do not change, its tensors become DTensors.

    Call it after activation checkpointing and compilation: a block is gathered around them, not inside.
    """
    model.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other strides
    for unit in (*model.blocks(), model.vision, model.text, model):
        fully_shard(unit, mesh=mesh)
    # The first unit that computes would become the root, and an evaluation may begin with one tower.
    assert isinstance(model, FSDPModule)
    model.unshard()
    model.reshard()
    return model


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor with the rows of all ranks; to be called on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
