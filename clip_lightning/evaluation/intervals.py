"""Intervals of 95 % of paired differences and of repeated measurements, beside those of `measured`."""

import math
from collections.abc import Sequence

import numpy as np

from clip_lightning.evaluation.measured import wilson


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
