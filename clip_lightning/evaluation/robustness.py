"""Effective robustness: accuracy under a distribution shift above what accuracy without the shift predicts.

Taori et al. 2020, "Measuring Robustness to Natural Distribution Shifts in Image Classification", section 2; the fit and
its band as in Figure 13 of Radford et al. 2021 and in the code of imagenet-testbed: a line by least squares through
logit-transformed accuracies of standard models only, and models resampled with replacement for a 95 % interval.
Accuracies are fractions of 1. Needs no torch.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import linregress

from clip_lightning.errors import UserError

NUM_RESAMPLES = 1000
SEED = 720257663  # of imagenet-testbed, so that its published intervals are reproduced
LEAST_MODELS = 3


@dataclass(frozen=True)
class LogitFit:
    """The line logit(shifted) = intercept + slope * logit(accuracy).

    Attributes:
        r2: share of the variance of logit(shifted) that the line explains.
        num_models: how many models were fitted.
        resampled: float64 [resamples, 2], slope and intercept of each resample of models.
    """

    slope: float
    intercept: float
    r2: float
    num_models: int
    resampled: np.ndarray

    def predict(self, accuracy: np.ndarray | float) -> np.ndarray:
        """Accuracy under the shift that the line gives for accuracies without it, fractions of the same shape."""
        return np.asarray(expit(self.intercept + self.slope * logit(accuracy)))

    def band(self, accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the 95 % interval of `predict` at accuracies [n]: two arrays [n]."""
        lines = self.resampled[:, :1] * logit(accuracy) + self.resampled[:, 1:]
        low, high = interval(lines)
        return expit(low), expit(high)

    @property
    def slope_interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval of the slope."""
        low, high = interval(self.resampled[:, 0])
        return float(low), float(high)

    @property
    def intercept_interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval of the intercept."""
        low, high = interval(self.resampled[:, 1])
        return float(low), float(high)


def fit_logits(
    accuracy: np.ndarray, shifted: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> LogitFit:
    """The logit fit over standard models.

    Args:
        accuracy: without the shift, [models], on the classes of the shifted sets; between 0 and 1, both excluded.
        shifted: under the shift, [models].

    Raises:
        UserError: fewer than three models, models of one accuracy, or an accuracy of 0 or 1.
    """
    accuracy, shifted = np.asarray(accuracy, float), np.asarray(shifted, float)
    both = np.stack([accuracy, shifted])
    if not ((both > 0) & (both < 1)).all():
        raise UserError(
            "a logit fit needs accuracies above 0 and below 1 (fractions), and an accuracy of exactly 0 or 1 has no "
            "logit; leave that model or data set out."
        )
    x, y = logit(accuracy), logit(shifted)
    resampled = resample_lines(x, y, num_resamples, seed)
    line = linregress(x, y)
    return LogitFit(float(line.slope), float(line.intercept), float(line.rvalue**2), len(x), resampled)


def effective_robustness(accuracy: np.ndarray | float, shifted: np.ndarray | float, fit: LogitFit) -> np.ndarray:
    """Accuracy under the shift minus that which the fit over standard models predicts, fractions (Taori et al., eq. 2).

    Args:
        accuracy: without the shift, any shape.
        shifted: under the shift, the same shape.
    """
    return np.asarray(shifted) - fit.predict(accuracy)


def gap_closed(accuracy: np.ndarray | float, shifted: np.ndarray | float, fit: LogitFit) -> np.ndarray:
    """Share of the robustness gap that a model closes: 0 on the fit, 1 where the shift costs nothing.

    The gap at an accuracy is that accuracy minus what the fit predicts for it; "up to 75 %" in Radford et al. 2021. NaN
    where the fit predicts no loss, so that there is no gap.
    """
    gap = np.asarray(accuracy) - fit.predict(accuracy)
    return effective_robustness(accuracy, shifted, fit) / np.where(gap > 0, gap, np.nan)


def resample_lines(x: np.ndarray, y: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Slope and intercept of least squares for each resample of pairs with replacement: float64 [num_resamples, 2].

    A resample whose x are all equal has no line; it is drawn again, which few points make necessary.

    Raises:
        UserError: fewer than three points, or all at one x.
    """
    if len(x) < LEAST_MODELS:
        raise UserError(f"a fit needs at least {LEAST_MODELS} models, and there {_are(len(x))}; name more runs.")
    if np.ptp(x) == 0:
        raise UserError(f"a fit needs models that differ on its x axis, and all {len(x)} have the same value there.")
    generator = np.random.RandomState(seed)
    rows = generator.randint(0, len(x), (num_resamples, len(x)))
    while (flat := np.ptp(x[rows], axis=1) == 0).any():
        rows[flat] = generator.randint(0, len(x), (int(flat.sum()), len(x)))
    xs, ys = x[rows], y[rows]
    xs_centred = xs - xs.mean(1, keepdims=True)
    slope = (xs_centred * ys).sum(1) / (xs_centred**2).sum(1)
    return np.stack([slope, ys.mean(1) - slope * xs.mean(1)], axis=1)


def interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % percentile interval over the first axis; each end is one of the resampled values."""
    return (
        np.percentile(resampled, 2.5, axis=0, method="lower"),
        np.percentile(resampled, 97.5, axis=0, method="higher"),
    )


def _are(number: int) -> str:
    return "is 1" if number == 1 else f"are {number}"
