"""Statistics of a ranking, prepared once and then computed for any weights of the rows, as a bootstrap needs.

Each function takes scores [n] and which rows are positive, bool [n], and returns a function of integer weights [n] that
gives the statistic of the rows repeated so many times; NaN where it is not defined. Rows of equal score share a place,
as in scikit-learn, which gives the same values; sorting once makes a thousand resamples a hundred times as fast.
"""

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], float]


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> Statistic:
    """Area under the ROC curve: the probability that a positive is above a negative, ties counted half."""
    order, ends = _descending(scores)
    positive = positive[order]

    def statistic(weights: np.ndarray) -> float:
        true, every = _counts(weights[order], positive, ends)
        false = every - true
        if not true[-1] or not false[-1]:
            return float("nan")
        steps = np.diff(false, prepend=0)
        heights = true - np.diff(true, prepend=0) / 2  # the middle of each step
        return float((steps * heights).sum() / (true[-1] * false[-1]))

    return statistic


def average_precision(scores: np.ndarray, positive: np.ndarray) -> Statistic:
    """Mean precision at the positives, as `sklearn.metrics.average_precision_score`."""

    def mean(true: np.ndarray, precision: np.ndarray) -> float:
        return float((np.diff(true, prepend=0) * precision).sum() / true[-1])

    return _of_precision(scores, positive, mean)


def eleven_points(scores: np.ndarray, positive: np.ndarray) -> Statistic:
    """Mean over the recalls 0, 0.1, ..., 1 of the largest precision at that recall or a larger one.

    Recalls are compared as whole numbers: 3 of 10 reach 0.3, which as a float they might not.
    """

    def mean(true: np.ndarray, precision: np.ndarray) -> float:
        largest = np.maximum.accumulate(precision[::-1])[::-1]
        first = np.searchsorted(10 * true, np.arange(11) * true[-1])
        return float(largest[first].mean())

    return _of_precision(scores, positive, mean)


def _of_precision(
    scores: np.ndarray, positive: np.ndarray, mean: Callable[[np.ndarray, np.ndarray], float]
) -> Statistic:
    """Args: mean: the statistic of the positives down to each distinct score, and the precision there."""
    order, ends = _descending(scores)
    positive = positive[order]

    def statistic(weights: np.ndarray) -> float:
        true, every = _counts(weights[order], positive, ends)
        return mean(true, true / np.maximum(every, 1)) if true[-1] else float("nan")

    return statistic


def _descending(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows by falling score, and the last place of each run of equal scores."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    return order, ends


def _counts(weights: np.ndarray, positive: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and rows down to each distinct score, int64."""
    weights = weights.astype(np.int64)
    return np.cumsum(weights * positive)[ends], np.cumsum(weights)[ends]
