"""The data sets' own metrics, against scikit-learn, torchmetrics, CLIP_benchmark and cases worked by hand."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from clip_benchmark.metrics.zeroshot_classification import average_precision_per_class
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from clip_lightning.evaluation.measured import percentile_interval
from clip_lightning.evaluation.metrics import METRICS, UNIT, Calibration, ImageRows, Measured, Scored, SetAccuracy
from clip_lightning.evaluation.ranking import average_precision, eleven_points, roc_auc


def measured(
    metric: Any, logits: torch.Tensor, labels: torch.Tensor, scale: float = 1.0, cuts: Sequence[int] = ()
) -> dict[str, Measured]:
    """In batches between the cuts, the later ones first."""
    index = torch.arange(len(logits))
    for start, end in reversed(list(pairwise([0, *cuts, len(logits)]))):
        part = slice(start, end)
        metric.update(Scored(logits[part], labels[part], index[part], torch.tensor([scale])))
    found: dict[str, Measured] = metric.measured()
    return found


def data(n: int = 300, num_classes: int = 6, pull: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        torch.randn(n, num_classes, generator=generator),
        torch.randint(num_classes, (n,), generator=generator),
    )
    logits[torch.arange(n), labels] += pull
    return logits, labels


def test_roc_auc_is_scikit_learns() -> None:
    logits, labels = data(400, 2)
    logits = logits.round(decimals=1)  # ties
    metric = METRICS["roc_auc"](2)
    found = measured(metric, logits, labels, cuts=[7, 7, 120])["roc_auc"]
    assert metric.compute()["roc_auc"].item() == found.value
    score = logits[:, 1].double() - logits[:, 0].double()
    assert found.value == pytest.approx(roc_auc_score(labels == 1, score), abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.chance == 0.5
    # Hanley and McNeil's standard error of this area with 200 against 200 is about 0.024.
    assert 0.06 < found.high - found.low < 0.12


def test_macro_f1_is_scikit_learns_over_the_classes_that_occur() -> None:
    logits, labels = data(200, 9)
    labels[labels == 4] = 5
    found = measured(METRICS["macro_f1"](9), logits, labels, cuts=[50])["macro_f1"]
    expected = f1_score(labels, logits.argmax(1), average="macro", labels=np.unique(labels))
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low is not None
    assert found.low < found.value


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.integers(-3, 3), min_size=2, max_size=30),
    seed=st.integers(0, 2**32 - 1),
)
def test_statistics_of_weights_are_those_of_repeated_rows(scores: list[int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = np.array(scores, dtype=np.float64)
    positive = draw.random(len(values)) < 0.5
    weights = draw.integers(0, 4, len(values))
    repeated, labels = np.repeat(values, weights), np.repeat(positive, weights)
    if labels.any():
        expected = average_precision_score(labels, repeated)
        assert average_precision(values, positive)(weights) == pytest.approx(expected, abs=1e-12)
        assert eleven_points(values, positive)(weights) == eleven_points(repeated, labels)(np.ones(len(labels)))
    else:
        assert math.isnan(average_precision(values, positive)(weights))
        assert math.isnan(eleven_points(values, positive)(weights))
    if labels.any() and not labels.all():
        assert roc_auc(values, positive)(weights) == pytest.approx(roc_auc_score(labels, repeated), abs=1e-12)
    else:
        assert math.isnan(roc_auc(values, positive)(weights))


def test_eleven_point_precision_worked_by_hand() -> None:
    """Positives at places 1, 3, 6, 8, 10 of ten: precisions 1, 2/3, 3/6, 4/8, 5/10 at recalls 0.2, 0.4, 0.6, 0.8, 1.

    Recalls 0, 0.1, 0.2 have the best precision 1; 0.3 and 0.4 have 2/3; 0.5 to 1 have 1/2: (3 + 2 x 2/3 + 6 / 2) / 11.
    """
    positive = np.isin(np.arange(1, 11), (1, 3, 6, 8, 10))
    scores = np.arange(10, 0, -1)
    assert eleven_points(scores, positive)(np.ones(10)) == pytest.approx((3 + 4 / 3 + 3) / 11, abs=1e-15)
    assert average_precision(scores, positive)(np.ones(10)) == pytest.approx((1 + 2 / 3 + 0.5 + 0.5 + 0.5) / 5)
    # 3 of 10 positives are a recall of 0.3 to the digit: precision 1 down to there, 10 / 13 from there to 1.
    early = np.array([1] * 3 + [0] * 3 + [1] * 7)
    assert eleven_points(-np.arange(13), early == 1)(np.ones(13)) == pytest.approx((4 + 7 * 10 / 13) / 11, abs=1e-15)


def test_plain_map_is_clip_benchmarks_and_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, labels = torch.randn(250, 8, generator=generator), torch.rand(250, 8, generator=generator) < 0.1
    found = measured(METRICS["map11"](8), scores, labels, cuts=[100])
    assert found["map"].value == pytest.approx(average_precision_per_class(scores, labels).mean().item(), abs=1e-6)
    each = [average_precision_score(labels[:, k], scores[:, k]) for k in range(8)]
    assert found["map"].value == pytest.approx(np.mean(each), abs=1e-12)
    assert found["map"].chance == pytest.approx(labels.float().mean().item())
    assert found["map11"].low is not None
    assert found["map11"].low < found["map11"].value


def test_calibration_error_is_torchmetrics() -> None:
    logits, labels = data(500, 8)
    found = measured(Calibration(8), logits, labels, scale=3.0, cuts=[123])["ece"]
    expected = multiclass_calibration_error((3 * logits).softmax(1), labels, 8, n_bins=15, norm="l1")
    assert found.value == pytest.approx(expected.item(), abs=1e-6)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_top1_top5_mean_is_their_mean() -> None:
    logits, labels = data(300, 12)
    found = measured(METRICS["top1_top5_mean"](12), logits, labels, cuts=[100])["top1_top5_mean"]
    top1 = (logits.argmax(1) == labels).double().mean()
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).double().mean()
    assert found.value == pytest.approx(((top1 + top5) / 2).item(), abs=1e-12)
    assert found.chance == pytest.approx((1 / 12 + 5 / 12) / 2)


@pytest.mark.parametrize(("metric", "depth"), [("worst_group_acc1", 1), ("worst_group_acc5", 5)])
def test_the_worst_group_is_named(metric: str, depth: int) -> None:
    logits, labels = data(300, 10)
    groups = np.arange(300) % 4 - 1  # a quarter is in no group
    logits[groups == 1, 0] += 1.5
    found = measured(METRICS[metric](10, groups, ["Africa", "Asia", "Europe"]), logits, labels, cuts=[40])
    hits = (logits.topk(depth).indices == labels[:, None]).any(1).numpy()
    shares = [hits[groups == k].mean() for k in range(3)]
    worst = found[metric]
    assert worst.value == pytest.approx(min(shares))
    assert (worst.group, worst.n) == ("Asia", 75)
    assert shares.index(min(shares)) == 1
    for name, share in zip(("Africa", "Asia", "Europe"), shares, strict=True):
        assert found[f"group_acc{depth}@{name}"].value == pytest.approx(share)


def test_anchors_and_their_neighbours_worked_by_hand() -> None:
    """Four anchors: right with wrong neighbour, right with right ones, wrong, and one whose image is missing."""
    groups = np.array([5, 5, 7, 7, 7, 2, 2, 9, 9])
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 0])
    predicted = [0, 1, 1, 1, 1, 0, 2, 0, 0]
    logits = torch.eye(3)[predicted]
    metric = METRICS["pm"](3, groups)
    present = torch.tensor([0, 1, 2, 3, 4, 5, 6, 8])  # image 7 is the anchor of group 9
    metric.update(Scored(logits[present], labels[present], present, torch.ones(1)))
    found = metric.measured()
    assert [found[what].value for what in ("pm0", "pm10", "pm")] == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert {one.n for one in found.values()} == {3}
    assert found["pm0"].chance == pytest.approx(1 / 3)


def test_anchors_may_have_several_labels() -> None:
    labels = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]]).bool()
    found = measured(METRICS["pm"](3, np.array([0, 0, 2])), torch.eye(3)[[1, 1, 0]], labels)
    assert [found[what].value for what in ("pm0", "pm10")] == [0.5, 0.5]
    assert found["pm0"].chance == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_jaccard_worked_by_hand() -> None:
    """Cue 0 has candidates 0..4 and two correct ones, cue 1 candidates 5..7 and one."""
    groups = np.array([0] * 5 + [1] * 3)
    labels = torch.zeros(8, 2, dtype=torch.bool)
    labels[[0, 3], 0] = True
    labels[6, 1] = True
    scores = torch.zeros(8, 2)
    scores[:5, 0] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])  # takes 0 and 1: one common of three
    scores[5:, 1] = torch.tensor([1.0, 2.0, 2.0])  # 6 and 7 share the one place
    found = measured(METRICS["jaccard"](2, groups), scores, labels)["jaccard"]
    assert found.value == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found.n == 2
    # By chance: of the pairs of five, 1 of 10 has both (1), 6 of 10 have one (1/3); of three, one of three.
    assert found.chance == pytest.approx(((0.1 + 0.6 / 3) + 1 / 3) / 2)


def test_a_wider_classifiers_best_class_has_to_count_as_the_label() -> None:
    logits = torch.tensor([[3.0, 1, 0, 0], [0, 3, 1, 0], [0, 0, 3, 3], [1, 1, 1, 1]])
    sets = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    found = measured(SetAccuracy(4), logits, sets)["acc1_all_classes"]
    assert found.value == pytest.approx((1 + 0 + 0.5 + 0.25) / 4)
    assert found.chance == pytest.approx(5 / 16)


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_batches_and_their_order_change_nothing(metric: str) -> None:
    generator = torch.Generator().manual_seed(2)
    num_classes = 2 if metric == "roc_auc" else 6
    logits, labels = data(60, num_classes)
    if metric in ("map", "map11", "jaccard"):
        labels = torch.rand(60, num_classes, generator=generator) < 0.3
    groups = np.sort(np.arange(60) % num_classes)
    whole = measured(METRICS[metric](num_classes, groups), logits, labels)
    parts = measured(METRICS[metric](num_classes, groups), logits, labels, cuts=[0, 13, 13, 59])
    assert whole == parts
    assert metric in whole
    one = whole[metric]
    assert one.low is not None
    assert one.high is not None
    assert 0 <= one.low <= one.value <= one.high <= 1


def test_rows_of_a_batch_without_images() -> None:
    metric = ImageRows(3)
    metric.update(
        Scored(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.ones(1))
    )
    metric.update(Scored(torch.tensor([[2.0, 1, 1]]), torch.tensor([1]), torch.tensor([4]), torch.ones(1)))
    rows = metric.gathered()
    assert {name: len(column) for name, column in rows.items()} == dict.fromkeys(rows, 1)
    assert (rows["first"][0], rows["five"][0], rows["predicted"][0]) == (0, UNIT, 0)
    assert rows["probability"][0] == pytest.approx(math.e / (math.e**2 + 2 * math.e))


@pytest.mark.slow
def test_the_bootstrap_covers_at_its_rate() -> None:
    draw, covered = np.random.default_rng(3), 0
    for _ in range(60):
        values = draw.exponential(size=80)
        low, high = percentile_interval(lambda weights, values=values: float(weights @ values) / 80, 80)  # type: ignore[misc]
        covered += low <= 1 <= high
    assert 50 <= covered <= 60
