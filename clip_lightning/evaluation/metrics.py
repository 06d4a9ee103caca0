"""From exact integer counts to accuracies with their intervals.

Counts per class are all that is kept of an evaluation: they add up over batches and ranks without rounding.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NORMAL_QUANTILE = 1.959963984540054  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Measured:
    """A value with the ends of its 95 % interval, and what guessing gives."""

    value: float
    low: float
    high: float
    chance: float


def ranks_of(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Rank of the correct class, int64 [B], 0 the best; of equal logits the lower class index goes first."""
    own_B1 = logits_BC.gather(1, labels_B[:, None])
    index_C = torch.arange(logits_BC.shape[1], device=logits_BC.device)
    ahead = (logits_BC > own_B1) | ((logits_BC == own_B1) & (index_C < labels_B[:, None]))
    return ahead.sum(1)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927); (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share, square = successes / n, NORMAL_QUANTILE**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = NORMAL_QUANTILE * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def normal_interval(values: Tensor) -> tuple[float, float]:
    """95 % interval of the mean of independent values [n], n >= 2, by the normal approximation."""
    values = values.double()
    half = NORMAL_QUANTILE * values.std().item() / math.sqrt(len(values))
    return values.mean().item() - half, values.mean().item() + half


class ClassCounts:
    """Images, and hits at rank 1 and among the best five, per class: exact integers."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        """Args: num_classes: C. device: where the counts [3, C] int64 lie."""
        self.num_classes = num_classes
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)

    def add(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Counts a batch of logits [B, C] with labels [B] int64."""
        ranks = ranks_of(logits_BC, labels_B)
        hits = torch.stack([torch.ones_like(ranks), (ranks < 1).long(), (ranks < 5).long()])
        self.counts.index_add_(1, labels_B, hits)

    @property
    def num_images(self) -> int:
        """All images counted."""
        return int(self.counts[0].sum())

    def accuracies(self) -> dict[str, Measured]:
        """`acc1` and `acc5` with Wilson's interval, `mean_per_class` with that of the mean of independent proportions.

        With fewer than five classes `acc5` counts them all. A class without images has no recall and is left out of
        `mean_per_class`. Its interval combines the classes' Wilson intervals by the distances of their ends from the
        recalls (MOVER; Zou and Donner 2008): it keeps its width where every class has recall 0 or 1.
        """
        images, *hits = self.counts.tolist()
        total, classes = sum(images), self.num_classes
        measured = {}
        for name, per_class, k in (("acc1", hits[0], 1), ("acc5", hits[1], min(5, classes))):
            measured[name] = Measured(sum(per_class) / total, *wilson(sum(per_class), total), k / classes)
        present = [(hit, n) for hit, n in zip(hits[0], images, strict=True) if n]
        recalls = [hit / n for hit, n in present]
        ends = [wilson(hit, n) for hit, n in present]
        mean = sum(recalls) / len(recalls)
        below = math.hypot(*(recall - low for recall, (low, _) in zip(recalls, ends, strict=True))) / len(recalls)
        above = math.hypot(*(high - recall for recall, (_, high) in zip(recalls, ends, strict=True))) / len(recalls)
        measured["mean_per_class"] = Measured(mean, mean - below, mean + above, 1 / classes)
        return measured
