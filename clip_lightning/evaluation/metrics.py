"""The metrics of the data sets, each a torchmetrics `Metric` that gives values with interval and chance: `METRICS`.

Metrics that need more than counts keep a row per image. The rows of all ranks are gathered and put in the order of the
images before anything is computed, so that the number of ranks changes nothing. An image that could not be read has no
row.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from clip_lightning.evaluation.counts import (
    UNIT,
    ClassAccuracy,
    ClassCounts,
    PairRecall,
    Scored,
    SetAccuracy,
    TaskMetric,
    hits_within,
    places,
    set_hits,
)
from clip_lightning.evaluation.measured import (
    NORMAL_QUANTILE,
    Measured,
    normal_interval,
    percentile_interval,
    resampled,
    wilson,
)
from clip_lightning.evaluation.ranking import average_precision, eleven_points, roc_auc

__all__ = [
    "METRICS",
    "UNIT",
    "Calibration",
    "ClassAccuracy",
    "ClassCounts",
    "ImageRows",
    "Measured",
    "PairRecall",
    "Scored",
    "SetAccuracy",
    "TaskMetric",
    "hits_within",
    "normal_interval",
    "places",
    "set_hits",
    "wilson",
]

CALIBRATION_BINS = 15  # Guo et al. 2017, section 2
NO_LABEL = -1
_FEWER_RESAMPLES = 200  # of a mean over classes, each of which is ranked again

# Shape suffixes: B images of a batch, n all images, C classes


class _Rows(TaskMetric):
    """Tensors that have a row per image."""

    names: tuple[str, ...] = ()
    index: list[Tensor]

    def __init__(self, num_classes: int, groups: np.ndarray | None = None, group_names: Sequence[str] = ()) -> None:
        super().__init__(num_classes, groups, group_names)
        for name in ("index", *self.names):
            self.add_state(name, [], dist_reduce_fx="cat")

    def append(self, index: Tensor, **columns: Tensor) -> None:
        """Adds the rows of a batch, which may be empty: a rank without images takes part in the gathering all the
        same.
        """
        for name, column in {"index": index, **columns}.items():
            getattr(self, name).append(column)

    def gathered(self) -> dict[str, np.ndarray]:
        """The columns over all ranks, in the order of the images."""
        must_sync = not self._is_synced  # torchmetrics syncs before `compute` by itself
        with self.sync_context(should_sync=must_sync, should_unsync=must_sync):
            columns = {name: dim_zero_cat(getattr(self, name)).cpu().numpy() for name in ("index", *self.names)}
        order = np.argsort(columns["index"], kind="stable")
        return {name: column[order] for name, column in columns.items()}

    def compute(self) -> dict[str, Tensor]:
        """The values alone, float64 scalars."""
        return {what: torch.tensor(found.value, dtype=torch.float64) for what, found in self.measured().items()}

    def measured(self) -> dict[str, Measured]:
        """As `TaskMetric.measured`."""
        return self.of(self.gathered())

    def of(self, rows: Mapping[str, np.ndarray]) -> dict[str, Measured]:
        """Values by name from the rows of all images."""
        raise AssertionError(f"{type(self).__name__} measures nothing")


class ImageRows(_Rows):
    """What is known of each image.

    Attributes:
        first, five: int64, hits among the best one and the best five in units of 1 / UNIT; `five` is 0 in a set in
            which an image may have any number of labels.
        label: int64; NO_LABEL in such a set.
        predicted: int64, the best class; of equal ones the first.
        confidence, probability: float32, of the predicted and of the correct class, by a softmax over the classes at
            the model's scale; of several correct classes the sum.
        chance: float32, the value of guessing: how many of the classes are correct, as a share.
    """

    names = ("first", "five", "label", "predicted", "confidence", "probability", "chance")

    def update(self, scored: Scored) -> None:
        """Adds a batch."""
        logits, labels = scored.logits, scored.labels
        probabilities = (scored.scale * logits).softmax(1)
        if labels.ndim == 2:
            first, five, label = (
                set_hits(logits, labels),
                torch.zeros_like(scored.samples),
                torch.full_like(scored.samples, NO_LABEL),
            )
            probability, chance = (probabilities * labels).sum(1), labels.float().mean(1)
        else:
            ahead, tied = places(logits, labels)
            first, five = (hits_within(depth, ahead, tied) for depth in (1, 5))
            label, probability = labels, probabilities.gather(1, labels[:, None])[:, 0]
            chance = torch.full_like(probability, 1 / logits.shape[1])
        confidence, predicted = probabilities.amax(1), logits.argmax(1)
        self.append(
            scored.samples,
            first=first,
            five=five,
            label=label,
            predicted=predicted,
            confidence=confidence,
            probability=probability,
            chance=chance,
        )


class Calibration(ImageRows):
    """`ece`: expected calibration error of the best class (Guo et al. 2017, equation 3): bins of equal width,
    differences weighted by the share of images. Its interval is normal: the bootstrap's own percentiles are biased
    upward.
    """

    higher_is_better = False

    def of(self, rows: Mapping[str, np.ndarray]) -> dict[str, Measured]:
        """As `_Rows.of`."""
        confidence = rows["confidence"].astype(np.float64)
        wrong_by = confidence - rows["first"] / UNIT
        bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)

        def error(weights: np.ndarray) -> float:
            return float(np.abs(np.bincount(bins, weights * wrong_by)).sum() / weights.sum())

        n = len(confidence)
        value, half = error(np.ones(n)), NORMAL_QUANTILE * float(np.std(resampled(error, n), ddof=1))
        return {"ece": Measured(value, max(0.0, value - half), min(1.0, value + half), None)}


class TopMean(ImageRows):
    """`top1_top5_mean`: the mean of top-1 and top-5 (Kinetics-700; Radford et al. 2021, appendix A.2)."""

    def of(self, rows: Mapping[str, np.ndarray]) -> dict[str, Measured]:
        """As `_Rows.of`."""
        hits, n = (rows["first"] + rows["five"]) / (2 * UNIT), len(rows["first"])
        value = int((rows["first"] + rows["five"]).sum()) / (2 * UNIT * n)
        interval = percentile_interval(lambda weights: float(weights @ hits) / n, n)
        chance = (1 + min(5, self.num_classes)) / (2 * self.num_classes)
        return {"top1_top5_mean": Measured(value, *interval, chance)}


class MacroF1(ImageRows):
    """`macro_f1`: the mean over the classes that have images of F1 (iWildCam; Gadre et al. 2023, appendix N).

    By scikit-learn's definition with `labels` those that occur, as WILDS has it (Koh et al. 2021).
    """

    def of(self, rows: Mapping[str, np.ndarray]) -> dict[str, Measured]:
        """As `_Rows.of`."""
        label, predicted, n = rows["label"], rows["predicted"], len(rows["label"])
        hits = label == predicted

        def score(weights: np.ndarray) -> float:
            true, guessed, both = (
                np.bincount(values, weights * of, minlength=self.num_classes)
                for values, of in ((label, 1), (predicted, 1), (label, hits))
            )
            present = true > 0
            return float((2 * both[present] / (true + guessed)[present]).mean())

        share = np.bincount(label) / n
        share, guess = share[share > 0], 1 / self.num_classes
        chance = float((2 * share * guess / (share + guess)).mean())
        return {"macro_f1": Measured(score(np.ones(n)), *percentile_interval(score, n), chance)}


class WorstGroup(ImageRows):
    """`worst_group_acc1` or `worst_group_acc5`: accuracy in the group that has the lowest (Gadre et al. 2023, appendix
    N: regions of FMoW and GeoDE at depth 1, incomes of Dollar Street at depth 5).

    Images of a group below 0 are in no group. The interval is Wilson's of that group alone, and does not count that
    it was selected as the worst.
    """

    def __init__(
        self, num_classes: int, groups: np.ndarray | None = None, group_names: Sequence[str] = (), depth: int = 1
    ) -> None:
        super().__init__(num_classes, groups, group_names)
        self.depth = depth

    def of(self, rows: Mapping[str, np.ndarray]) -> dict[str, Measured]:
        """As `_Rows.of`, and `group_acc...@NAME` of each group."""
        groups = _groups_of(self, rows["index"])
        hits, kept = rows["first" if self.depth == 1 else "five"], groups >= 0
        totals, counts = np.bincount(groups[kept]), _integer_sums(groups[kept], hits[kept])
        chance = min(self.depth, self.num_classes) / self.num_classes
        found = {}
        for group in np.flatnonzero(totals):
            n, share = int(totals[group]), int(counts[group]) / UNIT
            name = self.group_names[int(group)] if len(self.group_names) else str(group)
            found[name] = Measured(share / n, *wilson(share, n), chance, n, name)
        worst = min(found.values(), key=lambda one: one.value)
        each = {f"group_acc{self.depth}@{name}": one for name, one in found.items()}
        return {f"worst_group_acc{self.depth}": worst, **each}


class Anchors(ImageRows):
    """`pm0`, `pm10` and their mean `pm`: accuracy on anchor frames, and accuracy where all neighbours of an anchor
    count as well (Shankar et al. 2019; ImageNet Vid and Youtube-BB in Radford et al. 2021, section 3.3).

    The first image of a group is its anchor. An anchor without an image that could be read is left out.
    """

    def of(self, rows: Mapping[str, np.ndarray]) -> dict[str, Measured]:
        """As `_Rows.of`; `n` is the number of anchors."""
        groups, hits = _groups_of(self, rows["index"]), rows["first"] / UNIT
        assert self.groups is not None
        firsts = np.unique(self.groups, return_index=True)[1]
        anchors = np.isin(rows["index"], firsts)
        kept = np.isin(groups, groups[anchors])
        names, member = np.unique(groups[kept], return_inverse=True)
        num = len(names)
        alone, guessed = np.zeros(num), np.zeros(num)
        place = np.searchsorted(names, groups[anchors])
        alone[place], guessed[place] = hits[anchors], rows["chance"][anchors]
        together, lucky = np.ones(num), np.ones(num)
        np.multiply.at(together, member, hits[kept])
        np.multiply.at(lucky, member, rows["chance"][kept].astype(np.float64))
        both = (alone + together) / 2
        mean = percentile_interval(lambda weights: float(weights @ both) / num, num)
        chances = float(guessed.mean()), float(lucky.mean())
        return {
            "pm0": Measured(alone.mean(), *wilson(float(alone.sum()), num), chances[0], num),
            "pm10": Measured(together.mean(), *wilson(float(together.sum()), num), chances[1], num),
            "pm": Measured(float(both.mean()), *mean, sum(chances) / 2, num),
        }


class _ScoreRows(_Rows):
    """The scores of each image with all classes, float32, and its labels."""

    names = ("scores", "labels")

    def update(self, scored: Scored) -> None:
        """Adds a batch."""
        labels = scored.labels.byte() if scored.labels.dtype == torch.bool else scored.labels
        self.append(scored.samples, scores=scored.logits.float(), labels=labels)


class RocAuc(_ScoreRows):
    """`roc_auc` of the second of two classes (Hateful Memes; Radford et al. 2021, table 9), by the difference of the
    two scores, which has the order of its probability.
    """

    def of(self, rows: Mapping[str, np.ndarray]) -> dict[str, Measured]:
        """As `_Rows.of`; NaN where only one class has images."""
        scores = rows["scores"].astype(np.float64)
        score = roc_auc(scores[:, 1] - scores[:, 0], rows["labels"] == 1)
        n = len(scores)
        return {"roc_auc": Measured(score(np.ones(n, dtype=np.int64)), *percentile_interval(score, n), 0.5)}


class MeanAveragePrecision(_ScoreRows):
    """`map` and `map11` of images with any number of labels: the mean over the classes that have images.

    `map` is the plain average precision of scikit-learn, the mean precision at the hits. `map11` is that of VOC2007
    (Everingham et al. 2010, section 4.2), which the paper reports: the mean over the recalls 0, 0.1, ..., 1 of the
    largest precision at that recall or a larger one.
    """

    def of(self, rows: Mapping[str, np.ndarray]) -> dict[str, Measured]:
        """As `_Rows.of`."""
        scores, labels = rows["scores"], rows["labels"].astype(bool)
        present, n = np.flatnonzero(labels.any(0)), len(scores)
        found = {}
        for what, rule in (("map", average_precision), ("map11", eleven_points)):
            per_class = [rule(scores[:, k], labels[:, k]) for k in present]
            mean = partial(_mean_of, per_class)
            chance = float(labels[:, present].mean()) if what == "map" else None
            value = mean(np.ones(n, dtype=np.int64))
            found[what] = Measured(value, *percentile_interval(mean, n, _FEWER_RESAMPLES), chance)
        return found


class Jaccard(_ScoreRows):
    """`jaccard`: of each cue (class) with k correct candidates, the k best ones against the correct ones as sets, the
    mean over the cues (WinoGAViL; Bitton et al. 2022, section 4).

    Labels are bool [n, C]. A cue's candidates are the images whose group is the cue's number; without groups all
    images. Equal scores at the cut share the remaining places.
    """

    def of(self, rows: Mapping[str, np.ndarray]) -> dict[str, Measured]:
        """As `_Rows.of`; `n` is the number of cues."""
        from scipy.stats import hypergeom

        groups = None if self.groups is None else _groups_of(self, rows["index"])
        values, chances = [], []
        for cue in range(self.num_classes):
            mine = slice(None) if groups is None else groups == cue
            scores, correct = rows["scores"][mine, cue], rows["labels"][mine, cue].astype(bool)
            num, k = len(scores), int(correct.sum())
            if not k:
                continue
            cut = np.sort(scores)[-k]
            above, tied = scores > cut, scores == cut
            sure, at_cut = int((above & correct).sum()), int((tied & correct).sum())
            values.append(_expected_jaccard(hypergeom(int(tied.sum()), at_cut, k - int(above.sum())), k, sure))
            chances.append(_expected_jaccard(hypergeom(num, k, k), k, 0))
        means = np.array(values)
        interval = percentile_interval(lambda weights: float(weights @ means) / len(means), len(means))
        return {"jaccard": Measured(float(means.mean()), *interval, float(np.mean(chances)), len(means))}


def _expected_jaccard(extra_hits: Any, k: int, sure_hits: int) -> float:
    """Expected |A and B| / |A or B| of two sets of k with `sure_hits` plus a random number of common members."""
    low, high = (int(end) for end in extra_hits.support())
    hits = np.arange(low, high + 1)
    common = sure_hits + hits
    return float((extra_hits.pmf(hits) * common / (2 * k - common)).sum())


def _mean_of(statistics: Sequence[Callable[[np.ndarray], float]], weights: np.ndarray) -> float:
    """The mean of statistics of one bootstrap sample; those that are not defined in it are left out."""
    values = np.array([statistic(weights) for statistic in statistics])
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _groups_of(metric: TaskMetric, index: np.ndarray) -> np.ndarray:
    """The group of each image."""
    if metric.groups is None:
        raise AssertionError(f"{type(metric).__name__} needs a task with groups")
    return np.asarray(metric.groups)[index]


def _integer_sums(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of int64 values by group, without rounding."""
    sums = np.zeros(groups.max(initial=-1) + 1, dtype=np.int64)
    np.add.at(sums, groups, values)
    return sums


# A data set's own metric, by the name of its value, and what measures it. Called with the number of classes, the groups
# and their names.
METRICS: Mapping[str, Callable[..., TaskMetric]] = {
    "acc1": ClassAccuracy,
    "mean_per_class": ClassAccuracy,
    "map": MeanAveragePrecision,
    "map11": MeanAveragePrecision,
    "top1_top5_mean": TopMean,
    "roc_auc": RocAuc,
    "pm": Anchors,
    "macro_f1": MacroF1,
    "worst_group_acc1": WorstGroup,
    "worst_group_acc5": partial(WorstGroup, depth=5),
    "jaccard": Jaccard,
}
