"""Batch norm over groups of samples that the science fixes, whatever the ranks and micro-batches.

Statistics are shared by `compute.batch_norm_samples` neighbours of the global batch: groups inside a forward pass are
normalised one by one, a group that several ranks hold is put together by all-reduce. The running statistics take one
step of their momentum per optimizer step, towards the mean over all groups of all ranks. Layers are exchanged from
outside, in place: parameters, buffers and names stay as they are.

Shapes: n samples of a forward pass, C channels, then any number of axes.
"""

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_lightning.errors import UserError
from clip_lightning.loss.gather import all_reduce_sum, rank_and_world


class BatchStatistics:
    """What the layers of one model share.

    Attributes:
        samples: of a group on this rank.
        ranks: that hold a group together; 1: it lies on one.
        process_group: of those ranks.
    """

    def __init__(self, samples: int, ranks: int) -> None:
        self.samples, self.ranks = samples, ranks
        self.process_group: dist.ProcessGroup | None = None
        self.layers: list[_GroupedBatchNorm] = []

    def connect(self) -> None:
        """Makes the groups of ranks; once torch.distributed stands, on every rank."""
        world = rank_and_world()[1]
        for first in range(0, world if self.ranks > 1 else 0, self.ranks):
            group = dist.new_group(list(range(first, first + self.ranks)))
            if isinstance(group, dist.ProcessGroup):  # else this rank is in another
                self.process_group = group

    def fits(self, micro_batch: int) -> bool:
        """Whether forward passes of this size form whole groups."""
        return not self.layers or (self.ranks == 1 and micro_batch % self.samples == 0)

    def forget(self) -> None:
        """Drops what was seen since the last `commit`."""
        for layer in self.layers:
            layer.seen = []

    @torch.no_grad()
    def commit(self, is_skipped: Tensor) -> None:
        """Moves the running statistics by what was seen since the last call, unless the step was skipped.

        Args:
            is_skipped: [] on the device, not 0 where the optimizer step did nothing.
        """
        layers = [layer for layer in self.layers if layer.seen]
        if not layers:
            return
        seen = all_reduce_sum(torch.cat([layer.take_statistics() for layer in layers])) / rank_and_world()[1]
        for layer, statistics in zip(layers, seen.split([2 * layer.num_features for layer in layers]), strict=True):
            layer.move_running(statistics, is_skipped)


def apply(model: nn.Module, *, group: int, share: int, micro_batch: int) -> BatchStatistics:
    """Exchanges every batch norm of `model` that is in training; a locked tower's never is.

    Args:
        group: samples that share statistics, at most the global batch.
        share: of the global batch on one rank. micro_batch: of a forward pass.
    Raises: UserError where forward passes of this size cannot form such groups.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    is_inside, is_across = micro_batch % group == 0, micro_batch == share and group % share == 0
    if layers and not is_inside and not is_across:
        raise UserError(
            f"compute.batch_norm_samples={group}: {micro_batch} pairs in a forward pass and {share} on a rank form no "
            f"such groups; write cluster.micro_batch={group}, or null with ranks whose shares add up to {group}"
        )
    shared = BatchStatistics(min(group, share), max(1, group // share))
    for layer in layers:
        exchanged: Any = layer
        exchanged.__class__ = _grouped(exchanged.__class__)
        exchanged.begin(shared)
        shared.layers.append(exchanged)
    return shared


class _GroupedBatchNorm(_BatchNorm):
    """In training normalises each group by itself; otherwise as its original."""

    def begin(self, shared: BatchStatistics) -> None:
        assert self.momentum is not None, "a cumulative average has no step"
        self.shared = shared
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        if self.shared.ranks > 1:
            normalised = self._across_ranks(x)
        elif len(x) == self.shared.samples:
            normalised = self._inside(x)
        else:
            normalised = torch.cat([self._inside(group) for group in x.split(self.shared.samples)])
        for name in ("drop", "act"):  # timm's layers go on
            normalised = getattr(self, name, _same)(normalised)
        return normalised

    def take_statistics(self) -> Tensor:
        """Means and unbiased variances [2 C] of the groups seen since the last call, averaged."""
        seen, self.seen = torch.stack(self.seen).mean(0), []
        return seen

    def move_running(self, statistics: Tensor, is_skipped: Tensor) -> None:
        """One step of the momentum towards `statistics` [2 C]."""
        for running, value in zip((self.running_mean, self.running_var), statistics.chunk(2), strict=True):
            if running is not None:
                running.copy_(torch.where(is_skipped.bool(), running, running.lerp(value, self.momentum or 0.0)))
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += ~is_skipped.bool()

    def _inside(self, x: Tensor) -> Tensor:
        statistics = torch.zeros(2, self.num_features, device=x.device)
        mean, variance = statistics  # momentum 1 writes the group's own
        result = nn.functional.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        self.seen.append(statistics.flatten())
        return result

    def _across_ranks(self, x: Tensor) -> Tensor:
        axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        ranks, group = self.shared.ranks, self.shared.process_group
        with torch.autocast(x.device.type, enabled=False):
            values = x.float()
            mean = _AllReduce.apply(values.mean(axes), group) / ranks
            centred = values - mean.view(shape)
            variance = _AllReduce.apply(centred.square().mean(axes), group) / ranks
            result = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                result = result * self.weight.view(shape) + self.bias.view(shape)
        count = ranks * x.numel() // self.num_features
        self.seen.append(torch.cat([mean, variance * count / (count - 1)]).detach())
        return result.to(x.dtype)


class _AllReduce(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


@cache
def _grouped(original: Any) -> type[nn.Module]:
    return type(f"Grouped{original.__name__}", (_GroupedBatchNorm, original), {})


def _same(x: Tensor) -> Tensor:
    return x
