"""From exact integer counts to accuracies with their intervals.

The metrics are `torchmetrics.Metric`s whose states are integer sums: they add up over batches and ranks without
rounding, and `sync`, `reset` and logging work as for any other metric.

Equal logits share a place. Where t classes have the logit of the correct class and a classes have a larger one, the
correct class takes each of the places a + 1, ..., a + t with probability 1 / t, and an image counts with its
probability of being among the best k. Without ties this is the usual top-k accuracy; with ties the result does not
depend on the order of the classes, and a model whose features have all collapsed scores exactly chance. Shares of an
image are whole multiples of 1 / UNIT, so that counts remain integers (exact for ties of up to 16 classes).
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torchmetrics import Metric

UNIT = 720_720  # least common multiple of 1, ..., 16
NORMAL_QUANTILE = 1.959963984540054  # of a two-sided 95 % interval

# Shape suffixes: B images, C classes, K candidates, k depths


@dataclass(frozen=True)
class Measured:
    """A value with the ends of its 95 % interval, and the value of guessing."""

    value: float
    low: float
    high: float
    chance: float


def places(logits_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row, how many classes have a larger logit than the correct one, and how many the same: int64 [B], [B].

    The correct class itself is among the second.
    """
    own_B1 = logits_BC.gather(1, labels_B[:, None])
    return (logits_BC > own_B1).sum(1), (logits_BC == own_B1).sum(1)


def hits_within(depth: int, ahead_B: Tensor, tied_B: Tensor) -> Tensor:
    """Probability in units of 1 / UNIT that the correct class is among the best `depth`: int64 [B]."""
    free_B = (depth - ahead_B).clamp(min=0)
    tied_B = tied_B.clamp(min=1)  # 0 where the logit is NaN
    return (UNIT * torch.minimum(free_B, tied_B) + tied_B // 2) // tied_B


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927), by SciPy; (0, 1) for n = 0.

    Between two whole numbers of successes the ends are interpolated.
    """
    if n == 0:
        return 0.0, 1.0
    whole = math.floor(successes)
    part = successes - whole
    low, high = _wilson(whole, n)
    if not part:
        return low, high
    above_low, above_high = _wilson(whole + 1, n)
    return low + part * (above_low - low), high + part * (above_high - high)


@cache
def _wilson(successes: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest  # slow to import, and needed after an evaluation only

    ends = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)


def normal_interval(values: Tensor) -> tuple[float, float]:
    """95 % interval of the mean of independent values [n], n >= 2, by the normal approximation."""
    values = values.double()
    half = NORMAL_QUANTILE * values.std().item() / math.sqrt(len(values))
    return values.mean().item() - half, values.mean().item() + half


class ClassAccuracy(Metric):
    """Top-1, top-5 and mean per class of a classifier.

    Attributes:
        counts: int64 [3, C]: images, and hits among the best one and among the best five in units of 1 / UNIT.
    """

    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        """Args: num_classes: C."""
        super().__init__()
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Counts a batch of logits [B, C] with labels [B] int64."""
        ahead_B, tied_B = places(logits_BC, labels_B)
        hits = [torch.ones_like(ahead_B), *(hits_within(depth, ahead_B, tied_B) for depth in (1, 5))]
        self.counts.index_add_(1, labels_B, torch.stack(hits))

    def compute(self) -> dict[str, Tensor]:
        """`acc1`, `acc5` and `mean_per_class`, float64 scalars; over all ranks where torch.distributed is in use.

        A class without images has no recall and is not part of `mean_per_class`.
        """
        images_C, first_C, five_C = self.counts.double()
        present_C = images_C > 0
        recalls = first_C[present_C] / UNIT / images_C[present_C]
        acc1, acc5 = (hits_C.sum() / UNIT / images_C.sum() for hits_C in (first_C, five_C))
        return {"acc1": acc1, "acc5": acc5, "mean_per_class": recalls.mean()}

    def synced(self) -> "ClassCounts":
        """The counts of all ranks."""
        with self.sync_context():
            images, first, five = self.counts.tolist()
        return ClassCounts(images, first, five)


@dataclass(frozen=True)
class ClassCounts:
    """Counts by class: images, and hits at depths 1 and 5 in units of 1 / UNIT."""

    images: list[int]
    first: list[int]
    five: list[int]

    @property
    def num_images(self) -> int:
        """All images counted."""
        return sum(self.images)

    @property
    def recalls(self) -> list[float | None]:
        """The share of each class's images that are classified correctly; None for a class without images."""
        return [hits / (UNIT * n) if n else None for hits, n in zip(self.first, self.images, strict=True)]

    def accuracies(self) -> dict[str, Measured]:
        """`acc1` and `acc5` with Wilson's interval, `mean_per_class` with that of the mean of independent proportions.

        With fewer than five classes `acc5` counts them all. The interval of `mean_per_class` combines the classes'
        Wilson intervals by the distances of their ends from the recalls (MOVER; Zou and Donner 2008): it keeps its
        width where every class has recall 0 or 1.
        """
        total, classes = self.num_images, len(self.images)
        measured = {}
        for name, per_class, depth in (("acc1", self.first, 1), ("acc5", self.five, min(5, classes))):
            hits = sum(per_class)
            measured[name] = Measured(hits / (UNIT * total), *wilson(hits / UNIT, total), depth / classes)
        present = [(hits / UNIT, n) for hits, n in zip(self.first, self.images, strict=True) if n]
        recalls = [recall for recall in self.recalls if recall is not None]
        ends = [wilson(hits, n) for hits, n in present]
        mean = sum(recalls) / len(recalls)
        below = math.hypot(*(recall - low for recall, (low, _) in zip(recalls, ends, strict=True))) / len(recalls)
        above = math.hypot(*(high - recall for recall, (_, high) in zip(recalls, ends, strict=True))) / len(recalls)
        measured["mean_per_class"] = Measured(mean, mean - below, mean + above, 1 / classes)
        return measured


class PairRecall(Metric):
    """Recall at several depths of pairs that compete within a group, in both directions.

    Attributes:
        pairs: int64 [], pairs counted.
        hits: int64 [2, k] in units of 1 / UNIT: image to text, text to image, at each depth.
    """

    higher_is_better = True
    full_state_update = False
    pairs: Tensor
    hits: Tensor

    def __init__(self, depths: tuple[int, ...]) -> None:
        """Args: depths: of the best candidates, among which the partner counts as found."""
        super().__init__()
        self.depths = depths
        self.add_state("pairs", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("hits", torch.zeros(2, len(depths), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits_KK: Tensor) -> None:
        """Counts a group: logits of image (row) and text (column), whose partners are on the diagonal."""
        labels = torch.arange(len(logits_KK), device=logits_KK.device)
        for direction, logits in enumerate((logits_KK, logits_KK.T)):
            ahead, tied = places(logits, labels)
            self.hits[direction] += torch.stack([hits_within(depth, ahead, tied).sum() for depth in self.depths])
        self.pairs += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """`image_to_text_recall_at_K`, `text_to_image_recall_at_K`, and `recall_at_1`, the mean of both: float64."""
        shares = self.hits.double() / UNIT / self.pairs
        found = {"recall_at_1": shares[:, self.depths.index(1)].mean()}
        for direction, row in zip(("image_to_text", "text_to_image"), shares, strict=True):
            found |= {f"{direction}_recall_at_{depth}": share for depth, share in zip(self.depths, row, strict=True)}
        return found

    def synced(self) -> tuple[int, list[list[int]]]:
        """Pairs, and hits in units of 1 / UNIT by direction and depth, of all ranks."""
        with self.sync_context():
            return int(self.pairs), self.hits.tolist()
