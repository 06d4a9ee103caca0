"""Counts and intervals against torchmetrics, scikit-learn and SciPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.retrieval import retrieval_recall

from clip_lightning.evaluation.metrics import (
    UNIT,
    ClassAccuracy,
    ClassCounts,
    PairRecall,
    Scored,
    hits_within,
    normal_interval,
    places,
    wilson,
)


def scored(logits: torch.Tensor, labels: torch.Tensor) -> Scored:
    return Scored(logits, labels, torch.arange(len(logits)), torch.ones(1))


def test_accuracies_equal_those_of_scikit_learn_and_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 12, generator=generator), torch.randint(12, (500,), generator=generator)
    logits[torch.arange(500), labels] += 1
    accuracy = ClassAccuracy(12)
    accuracy.update(scored(logits, labels))
    measured = accuracy.synced().accuracies()
    assert {what: value.item() for what, value in accuracy.compute().items()} == pytest.approx(
        {what: found.value for what, found in measured.items()}, abs=1e-12
    )
    for average, k, what in (("micro", 1, "acc1"), ("micro", 5, "acc5"), ("macro", 1, "mean_per_class")):
        expected = multiclass_accuracy(logits, labels, 12, average=average, top_k=k).item()
        assert measured[what].value == pytest.approx(expected, abs=1e-6)
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(12))
        assert measured[f"acc{k}"].value == pytest.approx(expected, abs=1e-12)
    assert measured["mean_per_class"].value == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert [measured[what].chance for what in ("acc1", "acc5", "mean_per_class")] == [1 / 12, 5 / 12, 1 / 12]
    assert all(m.low < m.value < m.high for m in measured.values())


def test_a_class_without_images_is_left_out_of_the_mean() -> None:
    accuracy = ClassAccuracy(3)
    accuracy.update(scored(torch.eye(3)[[0, 1]], torch.tensor([0, 0])))
    assert accuracy.compute()["mean_per_class"] == accuracy.synced().accuracies()["mean_per_class"].value == 0.5
    assert accuracy.synced().recalls == [0.5, None, None]


def test_with_fewer_than_five_classes_the_best_five_are_all() -> None:
    accuracy = ClassAccuracy(3)
    accuracy.update(scored(torch.randn(10, 3), torch.tensor([0, 1, 2, 2, 1, 0, 0, 0, 1, 2])))
    acc5 = accuracy.synced().accuracies()["acc5"]
    assert (acc5.value, acc5.chance) == (1, 1)


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=20),
    seed=st.integers(0, 2**32 - 1),
)
def test_equal_logits_share_a_place_whatever_the_order_of_classes(logits: list[list[int]], seed: int) -> None:
    draw = np.random.default_rng(seed)
    table = np.array(logits, dtype=np.float32)
    labels, order = draw.integers(0, 6, len(table)), draw.permutation(6)
    shuffled = torch.from_numpy(table[:, order].copy()), torch.from_numpy(np.argsort(order)[labels])
    plain = places(torch.from_numpy(table), torch.from_numpy(labels))
    for depth in (1, 2, 5):
        expected = []
        for row, label in zip(table, labels, strict=True):
            ahead, tied = (row > row[label]).sum(), (row == row[label]).sum()
            expected.append(sum(ahead + k < depth for k in range(tied)) / tied)
        hits = hits_within(depth, *plain)
        assert (hits / UNIT).tolist() == pytest.approx(expected)
        assert torch.equal(hits_within(depth, *places(*shuffled)), hits)


def test_a_collapsed_model_scores_chance() -> None:
    accuracy = ClassAccuracy(10)
    accuracy.update(scored(torch.zeros(30, 10), torch.zeros(30, dtype=torch.int64)))
    assert {what: value.item() for what, value in accuracy.compute().items()} == pytest.approx(
        {"acc1": 0.1, "acc5": 0.5, "mean_per_class": 0.1}
    )


def test_recall_of_pairs_equals_that_of_torchmetrics() -> None:
    logits = torch.randn(40, 40, generator=torch.Generator().manual_seed(0)) + torch.eye(40)
    recall = PairRecall((1, 5, 10))
    recall.update(logits[:20, :20])
    recall.update(logits[20:, 20:])
    found = recall.compute()
    for direction, table in (("image_to_text", logits), ("text_to_image", logits.T)):
        for depth in (1, 5, 10):
            parts = [table[:20, :20], table[20:, 20:]]
            own = torch.eye(20, dtype=torch.bool)
            # Scores above 0: torchmetrics takes the others for not retrieved.
            rows = [retrieval_recall(part[k].exp(), own[k], top_k=depth) for part in parts for k in range(20)]
            assert found[f"{direction}_recall_at_{depth}"].item() == pytest.approx(torch.stack(rows).mean().item())
    both = found["image_to_text_recall_at_1"] + found["text_to_image_recall_at_1"]
    assert found["recall_at_1"] == both / 2
    recall.reset()
    assert recall.synced() == (0, [[0, 0, 0], [0, 0, 0]])


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=5))
def test_counts_do_not_depend_on_how_images_are_batched(cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(60, 8, generator=generator), torch.randint(8, (60,), generator=generator)
    whole, parts = ClassAccuracy(8), ClassAccuracy(8)
    whole.update(scored(logits, labels))
    edges = [0, *sorted(cuts), 60]
    for start, end in pairwise(edges):
        parts.update(scored(logits[start:end], labels[start:end]))
    assert torch.equal(whole.counts, parts.counts)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 10), (711, 1797), (1, 1)])
def test_wilson_equals_scipys(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_is_interpolated_between_whole_numbers() -> None:
    ends = [wilson(successes, 40) for successes in (12, 12.5, 13)]
    assert ends[1] == pytest.approx(tuple((a + b) / 2 for a, b in zip(ends[0], ends[2], strict=True)))
    assert wilson(0, 0) == (0, 1)


def test_interval_of_the_mean_per_class_covers_at_its_rate() -> None:
    generator = np.random.default_rng(0)
    truth = np.array([0.3, 0.6, 0.9, 0.99])
    covered = 0
    for _ in range(400):
        hits = (UNIT * generator.binomial(50, truth)).tolist()
        measured = ClassCounts([50] * 4, hits, [50 * UNIT] * 4).accuracies()["mean_per_class"]
        covered += measured.low <= truth.mean() <= measured.high
    assert 0.92 <= covered / 400 <= 0.99


def test_normal_interval_is_two_standard_errors_wide() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    low, high = normal_interval(values)
    assert (high - low) / 2 == pytest.approx(1.959964 * values.std().item() / 2)
