"""Intervals of 95 % of means, differences and repeated measurements, beside Wilson's in `metrics`."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from clip_lightning.evaluation.metrics import wilson

NUM_RESAMPLES, SEED = 2000, 0
_CHUNK = 1 << 22  # rows that are drawn at once


def mean_of_shares(shares: Sequence[float], counts: Sequence[int]) -> tuple[float, float, float]:
    """Mean of independent proportions with its interval, from their Wilson intervals (MOVER; Zou and Donner 2008).

    Args: shares, counts: of each group its share of hits, and its members, one or more.
    """
    mean = sum(shares) / len(shares)
    ends = [wilson(share * count, count) for share, count in zip(shares, counts, strict=True)]
    below = math.hypot(*(share - low for share, (low, _) in zip(shares, ends, strict=True))) / len(shares)
    above = math.hypot(*(high - share for share, (_, high) in zip(shares, ends, strict=True))) / len(shares)
    return mean, mean - below, mean + above


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's interval of the mean of two or more independent measurements, within 0 and 1."""
    from scipy.stats import t  # slow to import, and needed after a measurement only

    mean, n = float(np.mean(values)), len(values)
    half = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return max(0.0, mean - half), min(1.0, mean + half)


def paired_difference(only_first: int, only_second: int, both: int, n: int) -> tuple[float, float]:
    """Interval of the share of the second minus that of the first, of the same n items (Newcombe 1998, method 10).

    Args: only_first, only_second, both: items that are hits of one alone, and of both.
    """
    first, second = both + only_first, both + only_second
    p, q = first / n, second / n
    (low_p, high_p), (low_q, high_q) = wilson(first, n), wilson(second, n)
    neither = n - both - only_first - only_second
    marginals = first * (n - first) * second * (n - second)
    covariance = float(both * neither - only_first * only_second)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    phi = covariance / math.sqrt(marginals) if marginals else 0.0
    below = (q - low_q) ** 2 - 2 * phi * (q - low_q) * (high_p - p) + (high_p - p) ** 2
    above = (high_q - q) ** 2 - 2 * phi * (high_q - q) * (p - low_p) + (p - low_p) ** 2
    return q - p - math.sqrt(max(below, 0.0)), q - p + math.sqrt(max(above, 0.0))


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """The statistic of resamples of n items with replacement: float64 [num_resamples], the same at every call.

    Args: statistic: maps resamples, int64 [r, n] of items, to float64 [r].
    """
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    sizes = [min(rows, num_resamples - start) for start in range(0, num_resamples, rows)]
    return np.concatenate([statistic(generator.integers(0, n, (size, n))) for size in sizes])


def percentile_interval(resampled: np.ndarray) -> tuple[float, float]:
    """Ends of the central 95 % of resampled values."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)
