"""Batch norm over groups of samples that the science fixes, whatever the ranks and micro-batches.

`compute.batch_norm_samples` neighbours of the global batch share statistics: groups inside a forward pass are
normalised one by one; the statistics of a group that several ranks hold are all-reduced. The running statistics take
one step of their momentum per optimizer step, towards the mean over all groups of all ranks. Layers are replaced in
place: parameters, buffers and names do not change.

Shapes: n samples of a forward pass, C channels, then any number of axes.
"""

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clip_lightning.compat import BatchNorm, no_autocast
from clip_lightning.distributed import all_reduce_sum, rank_and_world
from clip_lightning.errors import UserError


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
        """Makes the groups of ranks; call it on every rank after torch.distributed is initialised."""
        world = rank_and_world()[1]
        for first in range(0, world if self.ranks > 1 else 0, self.ranks):
            group = dist.new_group(list(range(first, first + self.ranks)))
            if isinstance(group, dist.ProcessGroup):  # else this rank is in another
                self.process_group = group

    def fits(self, micro_batch: int) -> bool:
        """Whether forward passes of this size form complete groups."""
        return not self.layers or (self.ranks == 1 and micro_batch % self.samples == 0)

    def forget(self) -> None:
        """Drops what was seen since the last `commit`."""
        for layer in self.layers:
            layer.seen.zero_()

    @torch.no_grad()
    def commit(self, is_skipped: Tensor) -> None:
        """Moves the running statistics by what was seen since the last call, unless the step was skipped.

        Args:
            is_skipped: [] on the device, not 0 where the optimizer step did nothing.
        """
        if not self.layers:
            return
        seen = all_reduce_sum(torch.cat([layer.seen for layer in self.layers]))
        self.forget()
        for layer, summed in zip(self.layers, seen.split([len(layer.seen) for layer in self.layers]), strict=True):
            layer.move_running(summed, is_skipped)


def apply(model: nn.Module, *, group: int, share: int, micro_batch: int) -> BatchStatistics:
    """Replaces every batch norm of `model` that is in training mode; those of a locked tower never are.

    Args:
        group: samples that share statistics, at most the global batch.
        share: of the global batch on one rank. micro_batch: of a forward pass.
    Raises: UserError where forward passes of this size cannot form such groups.
    """
    layers = [module for module in model.modules() if isinstance(module, BatchNorm) and module.training]
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


class _GroupedBatchNorm(BatchNorm):
    """In training normalises each group by itself; otherwise as its original.

    Attributes:
        seen: [2 C + 1], means and unbiased variances of the groups since the last `commit`, summed, and their number.
            A tensor, since torch.compile makes a new graph for another length of a list.
    """

    def begin(self, shared: BatchStatistics) -> None:
        assert self.momentum is not None, "a cumulative average has no step"
        self.shared = shared
        self.seen = nn.Buffer(torch.zeros(2 * self.num_features + 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        normalise = self._across_ranks if self.shared.ranks > 1 else self._inside
        groups = [x] if len(x) == self.shared.samples else x.split(self.shared.samples)
        parts, statistics = zip(*map(normalise, groups), strict=True)
        # One addition for all groups: recomputation in the backward pass may stop early, and must count all or none.
        self.seen.add_(sum(statistics))
        normalised = parts[0] if len(parts) == 1 else torch.cat(parts)
        for name in ("drop", "act"):  # timm's layers include these
            normalised = getattr(self, name, _same)(normalised)
        return normalised

    def move_running(self, seen: Tensor, is_skipped: Tensor) -> None:
        """One step of the momentum towards the mean of `seen` [2 C + 1], if it holds any group."""
        statistics, stays = seen[:-1] / seen[-1], is_skipped.bool() | (seen[-1] == 0)
        for running, value in zip((self.running_mean, self.running_var), statistics.chunk(2), strict=True):
            if running is not None:
                running.copy_(torch.where(stays, running, running.lerp(value, self.momentum or 0.0)))
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += ~stays

    def _inside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The group `x`, normalised, and what it adds to `seen`."""
        statistics = torch.ones_like(self.seen)
        mean, variance, _ = statistics.tensor_split([self.num_features, 2 * self.num_features])
        # Momentum 1 writes the group's own.
        result = nn.functional.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        return result, statistics

    def _across_ranks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        ranks, group = self.shared.ranks, self.shared.process_group
        with no_autocast(x.device):
            values = x.float()
            mean = _AllReduce.apply(values.mean(axes), group) / ranks
            centred = values - mean.view(shape)
            variance = _AllReduce.apply(centred.square().mean(axes), group) / ranks
            result = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                result = result * self.weight.view(shape) + self.bias.view(shape)
        count = ranks * x.numel() // self.num_features
        statistics = torch.cat([mean, variance * count / (count - 1), mean.new_ones(1)])
        return result.to(x.dtype), statistics.detach()


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
