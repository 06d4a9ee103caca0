"""Counts and intervals against scikit-learn and SciPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from clip_lightning.evaluation.metrics import ClassCounts, normal_interval, ranks_of, wilson

CPU = torch.device("cpu")


def test_accuracies_equal_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 12, generator=generator), torch.randint(12, (500,), generator=generator)
    logits[torch.arange(500), labels] += 1
    counts = ClassCounts(12, CPU)
    counts.add(logits, labels)
    measured = counts.accuracies()
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(12))
        assert measured[f"acc{k}"].value == pytest.approx(expected, abs=1e-12)
    assert measured["mean_per_class"].value == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert [measured[what].chance for what in ("acc1", "acc5", "mean_per_class")] == [1 / 12, 5 / 12, 1 / 12]
    assert all(m.low < m.value < m.high for m in measured.values())


def test_a_class_without_images_is_left_out_of_the_mean() -> None:
    counts = ClassCounts(3, CPU)
    counts.add(torch.eye(3)[[0, 1]], torch.tensor([0, 0]))
    assert counts.accuracies()["mean_per_class"].value == 0.5


def test_with_fewer_than_five_classes_the_best_five_are_all() -> None:
    counts = ClassCounts(3, CPU)
    counts.add(torch.randn(10, 3), torch.tensor([0, 1, 2, 2, 1, 0, 0, 0, 1, 2]))
    assert (counts.accuracies()["acc5"].value, counts.accuracies()["acc5"].chance) == (1, 1)


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=20), seed=st.integers()
)
def test_of_equal_logits_the_lower_class_wins(logits: list[list[int]], seed: int) -> None:
    table = np.array(logits, dtype=np.float32)
    labels = np.random.default_rng(abs(seed)).integers(0, 6, len(table))
    order = np.argsort(-table, axis=1, kind="stable")
    expected = [row.tolist().index(label) for row, label in zip(order, labels, strict=True)]
    assert ranks_of(torch.from_numpy(table), torch.from_numpy(labels)).tolist() == expected


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=5))
def test_counts_do_not_depend_on_how_images_are_batched(cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(60, 8, generator=generator), torch.randint(8, (60,), generator=generator)
    whole, parts = ClassCounts(8, CPU), ClassCounts(8, CPU)
    whole.add(logits, labels)
    edges = [0, *sorted(cuts), 60]
    for start, end in pairwise(edges):
        parts.add(logits[start:end], labels[start:end])
    assert torch.equal(whole.counts, parts.counts)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 10), (711, 1797), (1, 1)])
def test_wilson_equals_scipys(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_interval_of_the_mean_per_class_covers_at_its_rate() -> None:
    generator = np.random.default_rng(0)
    truth = np.array([0.3, 0.6, 0.9, 0.99])
    covered = 0
    for _ in range(400):
        counts = ClassCounts(4, CPU)
        hits = generator.binomial(50, truth)
        counts.counts[:] = torch.tensor(np.stack([np.full(4, 50), hits, np.full(4, 50)]))
        measured = counts.accuracies()["mean_per_class"]
        covered += measured.low <= truth.mean() <= measured.high
    assert 0.92 <= covered / 400 <= 0.99


def test_normal_interval_is_two_standard_errors_wide() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    low, high = normal_interval(values)
    assert (high - low) / 2 == pytest.approx(1.959964 * values.std().item() / 2)
