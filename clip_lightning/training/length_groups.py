"""Captions grouped by length inside a forward pass; each group is padded to its own longest text only.

Exact where padding affects no feature: causal encoders that are pooled at the end of the text, and encoders that mask
padding. Captions of 14 tokens on average cost 26 to 41 when a batch of 64 to 1024 is padded to its longest.
Not used under FSDP: every group would gather the weights again, and ranks may have different numbers of groups.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_lightning.config.schema import TextConfig
from clip_lightning.training import sample_randomness
from clip_lightning.training.step_context import CurrentStep, GroupPlan

MOST_GROUPS = 4
GROUP_TOKENS = 64  # what one more group costs, in tokens: small matrix products and launches


def can_group(text: TextConfig, has_random_layers: bool) -> bool:
    """Whether shortening and reordering texts changes no feature."""
    is_exact = not text.pad_to_context and text.pool != "last" and text._target_ is None
    return is_exact and not has_random_layers


def plan_groups(lengths: Tensor, device: torch.device) -> GroupPlan:
    """The cheapest groups of texts.

    Args:
        lengths: int64 [b], on the CPU.
        device: of the plan.
    """
    values, counts = np.unique(lengths.numpy(), return_counts=True)
    bounds = [values[last - 1] for last in _cheapest_cuts(values, counts)]
    order = torch.argsort(lengths, stable=True)
    ends = torch.searchsorted(lengths[order], torch.tensor(bounds), right=True).tolist()
    both = torch.stack([order, torch.argsort(order)])
    if device.type == "cuda":
        both = both.pin_memory()  # a copy from other memory may wait for the device
    order, back = both.to(device, non_blocking=True)
    groups = [(order[first:last], int(bound)) for first, last, bound in zip([0, *ends[:-1]], ends, bounds, strict=True)]
    return GroupPlan(groups, back)


def apply(text: Any, config: TextConfig, step: CurrentStep) -> bool:
    """Puts `LengthGroups` before a text tower whose texts may be grouped; returns whether they may."""
    is_exact = can_group(config, sample_randomness.is_random(text))
    if is_exact:
        LengthGroups(text, step)
    return is_exact


class LengthGroups:
    """Called in place of a text tower's forward pass, or of its locked part; groups texts where there is a plan."""

    def __init__(self, text: Any, step: CurrentStep) -> None:
        self.step = step
        part = "pooled" if text.locked else "forward"
        self._forward: Any = getattr(text, part)
        setattr(text, part, self)

    def __call__(self, tokens_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """The tower's own result [B, ...], in the order given."""
        plan = self.step.context.plan if self.step.context is not None else None
        if plan is None:
            return self._forward(tokens_BL, lengths_B)
        parts = [self._forward(tokens_BL[rows, :longest], lengths_B[rows]) for rows, longest in plan.groups]
        return torch.cat(parts)[plan.back]


def _cheapest_cuts(values: np.ndarray, counts: np.ndarray) -> list[int]:
    """Ends of groups of neighbouring lengths, as positions in `values`, for the fewest tokens (dynamic programming).

    Args:
        values: different lengths, ascending. counts: how often each occurs.
    """
    num = len(values)
    before = np.concatenate([[0], np.cumsum(counts)])
    cost = (before[None, 1:] - before[:-1, None]) * values[None] + GROUP_TOKENS  # of a group from i to j inclusive
    cost = np.where(np.tri(num, k=-1, dtype=bool), np.inf, cost)
    best, firsts = cost[0], [np.zeros(num, dtype=np.int64)]
    totals = [best[-1]]
    for _ in range(min(MOST_GROUPS, num) - 1):
        through = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        firsts.append(through.argmin(0))
        best = through.min(0)
        totals.append(best[-1])
    ends, last = [], num
    for step in range(int(np.argmin(totals)), -1, -1):
        ends.append(last)
        last = int(firsts[step][last - 1])
    return ends[::-1]
