"""The probe against scikit-learn's plain grid search, and what few shots are fitted on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit

from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation import probe
from clip_lightning.evaluation.probe import GRID, Labelled


def digits(num: int = 400) -> tuple[Labelled, Labelled, Labelled]:
    """Training, validation and test images of handwritten digits, as 64 pixels from 0 to 1."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels, labels = (pixels[order] / 16).astype(np.float32), labels[order]
    parts = (slice(num), slice(num, num + 400), slice(num + 400, None))
    train, validation, test = (Labelled(pixels[part], labels[part]) for part in parts)
    return train, validation, test


def test_the_grid_is_the_papers() -> None:
    assert len(GRID) == 97
    assert [f"{GRID[k]:.0e}" for k in range(0, 97, 16)] == [
        "1e-06", "1e-04", "1e-02", "1e+00", "1e+02", "1e+04", "1e+06",
    ]  # fmt: skip
    assert GRID[8] / GRID[0] == pytest.approx(10)  # 8 steps a decade


@given(st.integers(0, 96))
def test_the_search_finds_a_single_peak_in_at_most_15_fits(peak: int) -> None:
    found = probe.search(lambda k: -abs(k - peak))
    assert found.best == peak
    assert len(found.tried) <= 15
    assert {0, 16, 32, 48, 64, 80, 96} <= set(found.tried)


def test_of_equal_scores_the_first_is_taken_and_ends_are_not_passed() -> None:
    assert probe.search(lambda k: 1.0).best == 0
    assert probe.search(lambda k: float(k)).best == 96


@pytest.mark.slow
def test_equals_scikit_learns_grid_search() -> None:
    """All 97 lambdas by GridSearchCV with the same validation split, then refitted on both splits."""
    train, validation, test = digits(150)
    both = train.joined(validation)
    fold = np.r_[np.full(len(train), -1), np.zeros(len(validation))]
    # Python's floats, as in the probe: a float64 of NumPy makes scikit-learn compute the penalty in float64 instead of
    # in the features' float32, and the iterations then end elsewhere.
    grid = {"C": (1 / GRID).tolist()}
    plain = GridSearchCV(LogisticRegression(max_iter=1000), grid, cv=PredefinedSplit(fold), scoring="accuracy").fit(
        both.features, both.labels
    )
    ours = probe.linear_probe(train, validation, test)
    theirs = plain.score(test.features, test.labels)
    print(f"ours {ours.correct.mean():.6f} at lambda {ours.strength:.4g}, {ours.num_fits} fits;", end=" ")
    print(f"grid search {theirs:.6f} at {1 / plain.best_params_['C']:.4g}, 98 fits, n={len(test)}")
    assert ours.correct.mean() == theirs
    assert ours.validation == pytest.approx(plain.best_score_)
    assert ours.num_fits <= 16
    assert ours.num_rows == len(train) + len(validation)


def test_a_probe_is_scikit_learns_classifier_at_that_lambda() -> None:
    train, _, test = digits(100)
    ours = probe.fit(train, 10.0)
    theirs = LogisticRegression(C=0.1, max_iter=1000).fit(train.features, train.labels)
    assert np.array_equal(ours.coef_, theirs.coef_)
    correct = theirs.predict(test.features) == test.labels
    assert probe.score(correct, test.labels) == correct.mean()
    recalls = [correct[test.labels == k].mean() for k in range(10)]
    assert probe.score(correct, test.labels, "mean_per_class") == pytest.approx(np.mean(recalls))


@pytest.mark.slow
@given(st.lists(st.integers(0, 4), min_size=30, max_size=80), st.integers(1, 3), st.integers(0, 5))
def test_shots_are_of_every_class_and_nested(labels: list[int], shots: int, seed: int) -> None:
    found = np.array([*labels, *(k for k in range(5) for _ in range(6))])
    rows = probe.draw_shots(found, shots, seed)
    assert len(rows) == len(set(rows.tolist())) == 5 * shots
    assert np.bincount(found[rows], minlength=5).tolist() == [shots] * 5
    assert set(rows) <= set(probe.draw_shots(found, 2 * shots, seed))
    assert np.array_equal(rows, probe.draw_shots(found, shots, seed))


@pytest.mark.slow
def test_few_shots_of_digits_fit_exactly_shots_times_classes_rows() -> None:
    train, validation, test = digits()
    scores = {}
    for shots in (1, 4, 16):
        probes = probe.few_shot(train, validation.take(np.arange(100)), test, shots, seeds=range(2))
        assert [(one.num_rows, one.shots, one.seed) for one in probes] == [(10 * shots, shots, k) for k in range(2)]
        record = probe.record(probes, test.labels, 10, "acc1", "digits")
        assert (record.what, record.n, record.chance) == (f"few_shot_{shots}_acc1", len(test), 0.1)
        assert record.low <= record.value <= record.high
        scores[shots] = record.value
    assert 0.3 < scores[1] < scores[4] < scores[16] < 1


def test_one_probe_has_the_interval_of_its_test_images() -> None:
    test = digits(100)[2]
    one = probe.Probe(None, None, 1.0, 500, 16, 0.9, np.arange(len(test)) % 10 != 0, 0.1)
    record = probe.record([one], test.labels, 10, "acc1", "digits")
    assert record.what == "linear_probe_acc1"
    assert record.value - record.low == pytest.approx(0.0175, abs=1e-3)
    mean = probe.record([one], test.labels, 10, "mean_per_class", "digits")
    assert mean.low < mean.value < mean.high


def test_a_fifth_of_each_class_is_held_out() -> None:
    labels = np.repeat([0, 1, 2], [50, 10, 4])
    train = Labelled(np.arange(64, dtype=np.float32)[:, None], labels)
    kept, held = probe.hold_out(train)
    assert np.bincount(held.labels, minlength=3).tolist() == [10, 2, 0]
    assert sorted([*kept.features[:, 0], *held.features[:, 0]]) == list(range(64))
    with pytest.raises(DataError, match="no class has 5 training images"):
        probe.hold_out(train.take(labels == 2))


def test_what_cannot_be_probed_is_refused() -> None:
    train, validation, test = digits(100)
    least = int(np.bincount(train.labels).argmin())
    with pytest.raises(UserError, match=rf"--shots 64: class {least} has \d+ training images"):
        probe.few_shot(train, validation, test, 64, [0])
    with pytest.raises(UserError, match="test images have class 9, which the training images lack"):
        probe.linear_probe(train.take(train.labels != 9), validation.take(validation.labels != 9), test)
    with pytest.raises(UserError, match="two classes or more"):
        probe.linear_probe(*(part.take(part.labels == 1) for part in (train, validation, test)))
    with pytest.raises(UserError, match="a probe is measured by acc1 or mean_per_class"):
        probe.linear_probe(train, validation, test, "map11")


@pytest.mark.slow
def test_few_shots_on_photographs(photographs: Path, tmp_path: Path) -> None:
    """Pixels of 1,200 CIFAR-10 photographs, shrunk to 8 x 8: a probe on them is above chance, and grows with shots."""
    from clip_lightning.data.images.decode import decode_eval
    from clip_lightning.evaluation.tasks import folder_task

    task = folder_task(photographs / "wds_cifar10")
    rows = np.random.default_rng(0).permutation(task.num_samples)[:1200]

    def pixels(k: int) -> Any:
        return decode_eval(task.read(k), 8).flatten().numpy() / np.float32(255)

    all_ = Labelled(np.stack([pixels(k) for k in rows.tolist()]), np.asarray(task.labels)[rows])
    train, validation, test = (all_.take(np.arange(*ends)) for ends in ((0, 500), (500, 700), (700, 1200)))
    values = []
    for shots in (1, 8, 32):
        probes = probe.few_shot(train, validation, test, shots, seeds=range(2))
        assert {one.num_rows for one in probes} == {10 * shots}
        values.append(probe.record(probes, test.labels, 10, "acc1", "cifar10").value)
    print(f"few-shot probes on 8 x 8 pixels, 1, 8, 32 shots: {values}")
    assert 0.1 < values[0] < values[2]
