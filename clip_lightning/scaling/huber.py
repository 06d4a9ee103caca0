"""Huber's loss on log residuals from many starts, as in Hoffmann et al. 2022, section D.2, with its two faults avoided.

The objective is summed, not averaged, and tolerances are tight: Besiroglu et al. 2024 (2404.10102) found that the
published fit had stopped early. SciPy's trust-region solver gets analytic gradients. The share of starts that reached
the best optimum is reported, since most do not.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from clip_lightning.scaling.forms import Array, Form
from clip_lightning.scaling.projection import SAME_OPTIMUM, Held, Solution, solve_linear, starts

DELTA = 1e-3
_SMALLEST = 1e-12  # of a coefficient, as a share of the largest answer


class HuberFit(NamedTuple):
    """The best solution (M = 1), and the share of starts that reached it."""

    solution: Solution
    share: float


def fit_huber(
    form: Form, z: Array, y: Array, *, num_starts: int = 100, delta: float = DELTA, seed: int = 0,
    start: Array | None = None,
) -> HuberFit:  # fmt: skip
    """Minimises the sum of Huber(log answer - log law).

    Args:
        z, y: normalised inputs [N, I] and answers [N].
        start: exponents [P] to start from alone, with the coefficients that are best there; None: many random starts.
    """
    num_coefficients = len(form.coefficients)
    rng = np.random.default_rng(seed)
    if start is not None:
        phi, _ = form.features(z, start[None])
        coefficients, _, _ = solve_linear(form, phi, y[None], 1 / y[None], Held())
        points = [np.concatenate([np.log(np.maximum(coefficients[0], _SMALLEST * y.max())), start])]
    else:
        theta = starts(form, num_starts, rng)
        scale = np.log(y.mean()) + rng.uniform(-3, 0.5, (len(theta), num_coefficients))
        points = list(np.concatenate([scale, theta], axis=1))
    low = np.concatenate([np.full(num_coefficients, np.log(_SMALLEST * y.max())), form.bounds[:, 0]])
    high = np.concatenate([np.full(num_coefficients, np.log(1e6 * y.max())), form.bounds[:, 1]])
    if form.has_floor:
        high[0] = np.log(y.min())
    found = [_descend(form, z, y, np.clip(point, low + 1e-9, high - 1e-9), (low, high), delta) for point in points]
    costs = np.array([cost for cost, _ in found])
    best = int(np.argmin(costs))
    share = float(np.mean(costs <= costs[best] * (1 + SAME_OPTIMUM) + 1e-18))
    point = found[best][1][None]
    solution = Solution(np.exp(point[:, :num_coefficients]), point[:, num_coefficients:], 2 * costs[best : best + 1])
    return HuberFit(solution, share)


def _descend(
    form: Form, z: Array, y: Array, point: Array, bounds: tuple[Array, Array], delta: float
) -> tuple[float, Array]:
    """The objective and the point [K + P] where SciPy's solver ends."""
    num = len(form.coefficients)
    log_y = np.log(y)

    def residuals(at: Array) -> Array:
        phi, _ = form.features(z, at[None, num:])
        return np.log(np.maximum(phi[0] @ np.exp(at[:num]), 1e-300)) - log_y

    def jacobian(at: Array) -> Array:
        phi, slopes = form.features(z, at[None, num:])
        coefficients = np.exp(at[:num])
        value = np.maximum(phi[0] @ coefficients, 1e-300)[:, None]
        return np.concatenate([phi[0] * coefficients, np.einsum("nkp,k->np", slopes[0], coefficients)], axis=1) / value

    done = least_squares(
        residuals, point, jacobian, bounds=bounds, loss="huber", f_scale=delta, ftol=1e-14, xtol=1e-12, gtol=1e-14,
        x_scale="jac", max_nfev=300,
    )  # fmt: skip
    return float(done.cost), done.x
