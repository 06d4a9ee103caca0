"""Linear probes on frozen features, all labels or few: appendix A.3 of Radford et al. 2021.

Logistic regression by scikit-learn's L-BFGS, at most 1,000 iterations, other arguments as they are by default. Lambda
is searched on a logarithmic grid from 1e-6 to 1e6 with 8 steps a decade, 97 points: at 1e-6, 1e-4, ..., 1e6 first, then
at half the distance around the best, until the distance is one step. It is chosen on the validation split; then the
classifier is fitted on training and validation images together and tested. scikit-learn's C is 1 / lambda, since it
multiplies the summed loss.

Few shots: exactly K images of each class, drawn by a seed; the K images of a seed are the first K of its 2 K. Lambda
is chosen on the whole validation split, as the paper did, and nothing but the K images of each class is fitted.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.intervals import student_interval
from clip_lightning.evaluation.measured import mean_of_proportions, wilson
from clip_lightning.records import Record

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

GRID = np.logspace(-6, 6, 97)  # lambda
FIRST_STEP = 16  # points between the first candidates: 1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6
MAX_ITERATIONS = 1000
HELD_OUT = 5  # one of so many images of a class validates, where there is no validation split
SHOTS = (1, 2, 4, 8, 16, 32, 64, 128)
METRICS = ("acc1", "mean_per_class")


@dataclass(frozen=True)
class Labelled:
    """Features float32 [n, D] with labels int64 [n]."""

    features: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Labelled":
        """Some of the rows, int64 [m] or bool [n]."""
        return Labelled(self.features[rows], self.labels[rows])

    def joined(self, other: "Labelled") -> "Labelled":
        """These rows, and then the other's."""
        return Labelled(np.concatenate([self.features, other.features]), np.concatenate([self.labels, other.labels]))


class Search(NamedTuple):
    """What a search found: the index of the best lambda in `GRID`, and the score of each index that was tried."""

    best: int
    tried: dict[int, float]

    @property
    def strength(self) -> float:
        """The best lambda."""
        return float(GRID[self.best])


@dataclass(frozen=True)
class Probe:
    """One fitted and tested probe.

    Attributes:
        shots, seed: None of a probe on all labels.
        strength: lambda.
        num_rows: images that the tested classifier was fitted on.
        num_fits: how many classifiers were fitted.
        validation: the best score on the validation split.
        correct: bool [n], by test image.
        seconds: of the search and the fits.
    """

    shots: int | None
    seed: int | None
    strength: float
    num_rows: int
    num_fits: int
    validation: float
    correct: np.ndarray
    seconds: float


def fit(train: Labelled, strength: float) -> "LogisticRegression":
    """The classifier at a lambda."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at the ends of the search, as in the paper's
        return LogisticRegression(C=1 / strength, max_iter=MAX_ITERATIONS).fit(train.features, train.labels)


def score(correct: np.ndarray, labels: np.ndarray, metric: str = "acc1") -> float:
    """Accuracy, or the mean over classes of the share of each class's images."""
    if metric == "acc1":
        return float(correct.mean())
    return float(np.mean([correct[labels == label].mean() for label in np.unique(labels)]))


def search(score_at: Callable[[int], float]) -> Search:
    """The paper's search for the index of the best lambda; of equal scores the smallest lambda is taken.

    Args: score_at: the score of an index of `GRID`; called once for each that is tried, at most 15 times.
    """
    tried: dict[int, float] = {}

    def at(k: int) -> float:
        if k not in tried:
            tried[k] = score_at(k)
        return tried[k]

    best, step = max(range(0, len(GRID), FIRST_STEP), key=at), FIRST_STEP
    while step > 1:
        step //= 2
        best = max((k for k in (best - step, best, best + step) if 0 <= k < len(GRID)), key=at)
    return Search(best, tried)


def sweep(train: Labelled, validation: Labelled, metric: str = "acc1") -> Search:
    """The search with classifiers of `train` and their scores on `validation`."""

    def score_at(k: int) -> float:
        correct = fit(train, float(GRID[k])).predict(validation.features) == validation.labels
        return score(correct, validation.labels, metric)

    return search(score_at)


def hold_out(train: Labelled, seed: int = 0) -> tuple[Labelled, Labelled]:
    """Training and validation rows: of each class a fifth, rounded down, validates."""
    rows = _shuffled_by_class(train.labels, seed)
    is_held = np.zeros(len(train), dtype=bool)
    for of_class in rows.values():
        is_held[of_class[: len(of_class) // HELD_OUT]] = True
    if not is_held.any():
        raise DataError(
            f"no class has {HELD_OUT} training images, so none can validate; name a validation split (--validation)."
        )
    return train.take(~is_held), train.take(is_held)


def linear_probe(train: Labelled, validation: Labelled, test: Labelled, metric: str = "acc1") -> Probe:
    """The probe on all labels: lambda on the validation split, then fitted on both splits and tested.

    Raises: UserError: the training images are of one class, or the test images have classes that they lack.
    """
    check(train, validation, test, metric)
    begin = time.perf_counter()
    found = sweep(train, validation, metric)
    both = train.joined(validation)
    correct = fit(both, found.strength).predict(test.features) == test.labels
    seconds = time.perf_counter() - begin
    return Probe(
        None, None, found.strength, len(both), len(found.tried) + 1, max(found.tried.values()), correct, seconds
    )


def few_shot(
    train: Labelled, validation: Labelled, test: Labelled, shots: int, seeds: Sequence[int], metric: str = "acc1"
) -> list[Probe]:
    """A probe for each seed on `shots` training images of each class, exactly shots x classes rows.

    Raises: UserError: a class has fewer training images; or as `linear_probe`.
    """
    check(train, validation, test, metric)
    refuse_shots(train.labels, [shots])
    probes = []
    for seed in seeds:
        begin = time.perf_counter()
        few = train.take(draw_shots(train.labels, shots, seed))
        found = sweep(few, validation, metric)
        correct = fit(few, found.strength).predict(test.features) == test.labels
        seconds = time.perf_counter() - begin
        num_fits, best = len(found.tried) + 1, max(found.tried.values())
        probes.append(Probe(shots, seed, found.strength, len(few), num_fits, best, correct, seconds))
    return probes


def draw_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of `shots` images of each class, int64 [shots x classes] in order, drawn by the seed."""
    return np.sort(np.concatenate([rows[:shots] for rows in _shuffled_by_class(labels, seed).values()]))


def refuse_shots(labels: np.ndarray, shots: Sequence[int]) -> None:
    """Raises UserError for each number of shots that a class has too few images for."""
    classes, counts = np.unique(labels, return_counts=True)
    least = int(counts.argmin())
    if problems := [
        f"--shots {number}: class {classes[least]} has {counts[least]} training images (without those that validate); "
        f"leave {number} out."
        for number in shots
        if number > counts[least]
    ]:
        raise UserError(*problems)


def check(train: Labelled, validation: Labelled, test: Labelled, metric: str) -> None:
    """Raises UserError where these cannot be probed: one class, unknown classes, another metric."""
    if metric not in METRICS:
        raise UserError(f"--metric {metric}: a probe is measured by {' or '.join(METRICS)}.")
    known = np.unique(train.labels)
    problems = []
    if len(known) < 2:
        problems.append(f"a probe needs training images of two classes or more, and there are those of {len(known)}.")
    for name, split in (("validation", validation), ("test", test)):
        if unknown := sorted(set(split.labels.tolist()) - set(known.tolist())):
            problems.append(
                f"{name} images have class {unknown[0]}, which the training images lack; check that both splits number "
                "their classes alike."
            )
    if problems:
        raise UserError(*problems)


def record(
    probes: Sequence[Probe], labels: np.ndarray, num_classes: int, metric: str, task: str, split: str = "test"
) -> Record:
    """One record of probes that differ by their seeds alone: `linear_probe_acc1`, `few_shot_16_acc1`.

    The interval of one probe is that of its test images; of several seeds, Student's interval of their mean: what
    another draw of the labelled images would change.
    """
    values = [score(probe.correct, labels, metric) for probe in probes]
    shots = probes[0].shots
    low, high = student_interval(values) if len(values) > 1 else _interval(probes[0].correct, labels, metric)
    return Record(
        what=f"linear_probe_{metric}" if shots is None else f"few_shot_{shots}_{metric}",
        value=float(np.mean(values)),
        low=low,
        high=high,
        n=len(labels),
        chance=1 / num_classes,
        task=task,
        split=split,
    )


def _interval(correct: np.ndarray, labels: np.ndarray, metric: str) -> tuple[float, float]:
    if metric == "acc1":
        return wilson(float(correct.sum()), len(correct))
    of_class = [correct[labels == label] for label in np.unique(labels)]
    return mean_of_proportions([float(hits.sum()) for hits in of_class], [len(hits) for hits in of_class])[1:]


def shots_to_match(shots: np.ndarray, scores: np.ndarray, target: float) -> float:
    """Labelled images of a class at which the scores reach the target (Radford et al. 2021, Figure 7).

    The scores are interpolated linearly in the logarithm of the number of images; below the smallest number the first
    two are continued downwards, as a number below one in the paper's figure needs.

    Args:
        shots, scores: [k], k >= 2, of increasing numbers of images.
    Returns:
        Infinity where no number of images reached the target.
    """
    log_shots = np.log2(shots)
    reached = np.flatnonzero(scores >= target)
    if not len(reached):
        return float("inf")
    after = max(int(reached[0]), 1)
    before = after - 1
    rise = scores[after] - scores[before]
    if rise <= 0:
        return float(shots[0])
    steps = (target - scores[before]) / rise
    return float(2 ** (log_shots[before] + steps * (log_shots[after] - log_shots[before])))


def _shuffled_by_class(labels: np.ndarray, seed: int) -> dict[int, np.ndarray]:
    """The rows of each class in a random order of the seed and the class alone."""
    return {
        label: np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))
        for label in np.unique(labels).tolist()
    }
