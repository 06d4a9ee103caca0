"""From exact integer counts to accuracies with their intervals.

The metrics are `torchmetrics.Metric`s whose states are integer sums: they add up over batches and ranks without
rounding, and `sync`, `reset` and logging work as for any other metric.

Equal logits share a place. Where t classes have the logit of the correct class and a classes have a larger one, the
correct class takes each of the places a + 1, ..., a + t with probability 1 / t, and an image counts with its
probability of being among the best k. Without ties this is the usual top-k accuracy; with ties the result does not
depend on the order of the classes, and a model whose features have all collapsed scores exactly chance. Shares of an
image are whole multiples of 1 / UNIT, so that counts remain integers (exact for ties of up to 16 classes).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from clip_lightning.evaluation.measured import Measured, mean_of_proportions, wilson

UNIT = 720_720  # least common multiple of 1, ..., 16

# Shape suffixes: B images, C classes, K candidates, k depths


class Scored(NamedTuple):
    """A batch of images and what the classifier gives for them.

    Attributes:
        logits: [B, C], cosines with the classes, float32; -inf for a class that nothing can be classified as.
        labels: int64 [B], or bool [B, C] where an image may have any number of classes.
        samples: int64 [B], which images of the task these are.
        scale: of the logits in a softmax, float32 [1].
    """

    logits: Tensor
    labels: Tensor
    samples: Tensor
    scale: Tensor


class TaskMetric(Metric):
    """A metric of classified images.

    Attributes:
        num_classes: C.
        groups: int64 [n of the whole task]: see `ZeroShotTask.groups`; None without groups.
        group_names: a name per group, or nothing.
    """

    higher_is_better: bool | None = True
    full_state_update = False

    def __init__(self, num_classes: int, groups: np.ndarray | None = None, group_names: Sequence[str] = ()) -> None:
        super().__init__()
        self.num_classes, self.groups, self.group_names = num_classes, groups, group_names

    def measured(self) -> dict[str, Measured]:
        """Values by name, with interval and chance, over all ranks; the same on every rank, and to be called on all."""
        raise AssertionError(f"{type(self).__name__} measures nothing")


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


def set_hits(logits_BC: Tensor, sets_BC: Tensor) -> Tensor:
    """Probability in units of 1 / UNIT that the best class is in the image's set of labels: int64 [B].

    Args:
        sets_BC: bool, which classes are correct. Of t classes that share the largest logit each is the best with
            probability 1 / t.
    """
    best_BC = logits_BC == logits_BC.amax(1, keepdim=True)
    tied_B = best_BC.sum(1).clamp(min=1)  # 0 where a logit is NaN
    return (UNIT * (best_BC & sets_BC).sum(1) + tied_B // 2) // tied_B


class ClassAccuracy(TaskMetric):
    """`acc1`, `acc5` and `mean_per_class` of images with one label each.

    Attributes:
        counts: int64 [3, C]: images, and hits among the best one and among the best five in units of 1 / UNIT.
    """

    counts: Tensor

    def __init__(self, num_classes: int, groups: np.ndarray | None = None, group_names: Sequence[str] = ()) -> None:
        super().__init__(num_classes, groups, group_names)
        self.add_state("counts", torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scored: Scored) -> None:
        """Counts a batch."""
        ahead_B, tied_B = places(scored.logits, scored.labels)
        hits = [torch.ones_like(ahead_B), *(hits_within(depth, ahead_B, tied_B) for depth in (1, 5))]
        self.counts.index_add_(1, scored.labels, torch.stack(hits))

    def measured(self) -> dict[str, Measured]:
        """As `ClassCounts.accuracies`."""
        return self.synced().accuracies()

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

        With fewer than five classes `acc5` counts them all. A class without images is not part of the mean.
        """
        total, classes = self.num_images, len(self.images)
        measured = {}
        for name, per_class, depth in (("acc1", self.first, 1), ("acc5", self.five, min(5, classes))):
            hits = sum(per_class)
            measured[name] = Measured(hits / (UNIT * total), *wilson(hits / UNIT, total), depth / classes)
        present = [(hits / UNIT, n) for hits, n in zip(self.first, self.images, strict=True) if n]
        mean, low, high = mean_of_proportions(*zip(*present, strict=True))
        measured["mean_per_class"] = Measured(mean, low, high, 1 / classes)
        return measured


class SetAccuracy(TaskMetric):
    """`acc1_all_classes`: the best of all classes of a wider classifier has to be one that counts as the image's label.

    The labels of a batch are these sets, bool [B, C]. Exact as counts are.
    """

    sums: Tensor

    def __init__(self, num_classes: int, groups: np.ndarray | None = None, group_names: Sequence[str] = ()) -> None:
        super().__init__(num_classes, groups, group_names)
        # Images, hits in units of 1 / UNIT, and classes that are correct.
        self.add_state("sums", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scored: Scored) -> None:
        """Counts a batch."""
        hits_B = set_hits(scored.logits, scored.labels)
        self.sums += torch.stack([torch.ones_like(hits_B).sum(), hits_B.sum(), scored.labels.sum()])

    def compute(self) -> Tensor:
        """The accuracy, float64 scalar."""
        return self.sums[1].double() / UNIT / self.sums[0]

    def measured(self) -> dict[str, Measured]:
        """With Wilson's interval."""
        with self.sync_context():
            images, hits, correct = self.sums.tolist()
        chance = correct / (images * self.num_classes)
        return {"acc1_all_classes": Measured(hits / (UNIT * images), *wilson(hits / UNIT, images), chance)}


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
