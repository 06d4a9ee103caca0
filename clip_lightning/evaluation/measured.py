"""Values with their 95 % intervals: Wilson's for counts, the bootstrap for everything else."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from torch import Tensor

NORMAL_QUANTILE = 1.959963984540054  # of a two-sided 95 % interval
RESAMPLES, SEED = 1000, 0


@dataclass(frozen=True)
class Measured:
    """A value with the ends of its 95 % interval, and the value of guessing.

    Attributes:
        low, high, chance: None where they are not known.
        n: images, anchors or cues that the value is over, where it is not all images that were evaluated.
        group: name of the group of images that the value is of.
    """

    value: float
    low: float | None
    high: float | None
    chance: float | None
    n: int | None = None
    group: str = ""


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927), by SciPy; (0, 1) for n = 0.

    Between two whole numbers of successes the ends are interpolated.
    """
    if n == 0:
        return 0.0, 1.0
    whole = math.floor(successes)
    part = successes - whole
    low, high = _wilson(whole, n)
    if not part:
        return low, high
    above_low, above_high = _wilson(whole + 1, n)
    return low + part * (above_low - low), high + part * (above_high - high)


@cache
def _wilson(successes: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest  # slow to import, and needed after an evaluation only

    ends = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(ends.low), float(ends.high)


def mean_of_proportions(successes: Sequence[float], totals: Sequence[int]) -> tuple[float, float, float]:
    """The mean of independent proportions with its 95 % interval: value, low, high.

    The interval combines the proportions' Wilson intervals by the distances of their ends from the proportions (MOVER;
    Zou and Donner 2008): it keeps its width where every proportion is 0 or 1.
    """
    shares = [hits / n for hits, n in zip(successes, totals, strict=True)]
    ends = [wilson(hits, n) for hits, n in zip(successes, totals, strict=True)]
    mean = sum(shares) / len(shares)
    below = math.hypot(*(share - low for share, (low, _) in zip(shares, ends, strict=True))) / len(shares)
    above = math.hypot(*(high - share for share, (_, high) in zip(shares, ends, strict=True))) / len(shares)
    return mean, mean - below, mean + above


def normal_interval(values: Tensor) -> tuple[float, float]:
    """95 % interval of the mean of independent values [n], n >= 2, by the normal approximation."""
    values = values.double()
    half = NORMAL_QUANTILE * values.std().item() / math.sqrt(len(values))
    return values.mean().item() - half, values.mean().item() + half


def resampled(statistic: Callable[[np.ndarray], float], n: int, resamples: int = RESAMPLES) -> np.ndarray:
    """The statistic of bootstrap samples of n rows (Efron 1979), float64 [resamples]; NaN where it is not defined.

    Seeded, so that every rank and every repetition has the same interval. `scipy.stats.bootstrap` resamples the rows
    themselves; here a sample is the number of times that each row occurs, so that rows are sorted once for all samples.

    Args:
        statistic: of weights int64 [n].
    """
    random = np.random.default_rng(SEED)
    draws = (np.bincount(random.integers(0, n, n), minlength=n) for _ in range(resamples))
    return np.array([statistic(weights) for weights in draws])


def percentile_interval(
    statistic: Callable[[np.ndarray], float], n: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile of the bootstrap's values; those that are not defined are left out."""
    values = resampled(statistic, n, resamples)
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
