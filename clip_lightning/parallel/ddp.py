"""Data parallel with the whole model on every rank."""

from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clip_lightning import compat
from clip_lightning.parallel.process_group import FIRST_STEP_TIMEOUT


class FixedBuckets(DistributedDataParallel):
    """DDP whose gradients lie in the same buckets from the first step on.

    DDP begins with one bucket and, after the first backward pass, makes new ones in the order in which gradients became
    ready. A sum over three or more ranks depends on where a gradient lies in its bucket, so the step after a resume
    would have other bits than the same step of a run that was not interrupted. Here the buckets are made once, before
    the first step, from the last parameter to the first, which is nearly the order in which gradients become ready:
    reducing them overlaps with the backward pass as before.
    """

    def __init__(self, module: nn.Module, **settings: Any) -> None:
        super().__init__(module, **settings)
        compat.make_final_buckets(self)

    def _build_params_for_reducer(self) -> tuple[list[nn.Parameter], list[bool]]:
        parameters, are_sparse = super()._build_params_for_reducer()
        return parameters[::-1], are_sparse[::-1]


class FixedBucketsStrategy(DDPStrategy):
    """Lightning's strategy for DDP with `FixedBuckets`."""

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        device_ids = self.determine_ddp_device_ids()
        # A stream of its own, as in Lightning: https://pytorch.org/docs/stable/notes/cuda.html#id5
        with torch.cuda.stream(torch.cuda.Stream()) if device_ids is not None else nullcontext():
            return FixedBuckets(model, device_ids=device_ids, **self._ddp_kwargs)


def strategy() -> DDPStrategy:
    """What Lightning's Trainer takes for `ddp`.

    Gradients are views of the buckets that are reduced (no second copy), and buffers are not sent from rank 0: the
    statistics of batch norm are averaged by their owner instead.
    """
    return FixedBucketsStrategy(gradient_as_bucket_view=True, forward_sync_buffers=False, timeout=FIRST_STEP_TIMEOUT)
