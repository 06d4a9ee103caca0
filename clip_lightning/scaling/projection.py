"""Variable projection: a search over the exponents of a form, with a linear solve for its coefficients inside.

Golub and Pereyra 1973, with Kaufman's Jacobian. Written for batches, since a bootstrap, a profile and a simulated study
are many fits of one design, and SciPy solves one at a time.

Shapes: M fits, N points, K coefficients, P exponents. Each fit has its own answers and weights.
"""

from dataclasses import dataclass, field
from itertools import product

import numpy as np

from clip_lightning.scaling.forms import Array, Form

STEPS = 80
# Fits whose objectives differ by less are at one optimum.
SAME_OPTIMUM = 1e-6
_CHUNK = 4_000_000  # numbers of one temporary array


@dataclass(frozen=True)
class Held:
    """Coefficients that are not fitted: index -> value [M]; exponents likewise."""

    coefficients: dict[int, Array] = field(default_factory=dict)
    exponents: dict[int, Array] = field(default_factory=dict)

    def take(self, rows: Array) -> "Held":
        """Those of some of the fits."""
        return Held(
            {k: value[rows] for k, value in self.coefficients.items()},
            {p: value[rows] for p, value in self.exponents.items()},
        )


@dataclass(frozen=True)
class Solution:
    """M fits.

    Attributes:
        coefficients: [M, K], not negative, the floor at most the least answer.
        theta: [M, P].
        sse: [M], the sum of squared weighted residuals.
    """

    coefficients: Array
    theta: Array
    sse: Array

    def take(self, rows: Array) -> "Solution":
        """Some of the fits."""
        return Solution(self.coefficients[rows], self.theta[rows], self.sse[rows])


def solve_linear(form: Form, phi: Array, y: Array, w: Array, held: Held) -> tuple[Array, Array, Array]:
    """Coefficients for features [M, N, K], answers and weights [M, N]: not negative, the floor at most min(y).

    Returns:
        Coefficients [M, K], the sums of squares [M], and which coefficients are inside their bounds [M, K].
    """
    num_fits, _, num_coefficients = phi.shape
    cap = np.maximum(np.where(w > 0, y, np.inf).min(axis=1), 0)  # a bootstrap's answer may be below 0
    weighted, answers = phi * w[:, :, None], y * w
    gram = np.einsum("mnk,mnl->mkl", weighted, weighted, optimize=True)
    right = np.einsum("mnk,mn->mk", weighted, answers, optimize=True)
    fixed = held.coefficients
    best = np.full(num_fits, np.inf)
    coefficients, inside = np.zeros((num_fits, num_coefficients)), np.zeros((num_fits, num_coefficients), bool)
    pending = np.ones(num_fits, bool)
    for states in _active_sets(num_coefficients, set(fixed), form.has_floor):
        rows = np.flatnonzero(pending)
        if not len(rows):
            break
        free = np.array([state == "free" for state in states])
        value = np.zeros((len(rows), num_coefficients))
        for k, state in enumerate(states):
            value[:, k] = fixed[k][rows] if state == "held" else cap[rows] if state == "cap" else 0.0
        if free.any():
            rest = right[rows] - np.einsum("mkl,ml->mk", gram[rows], value)
            block = gram[np.ix_(rows, free, free)]
            scale = 1 / np.sqrt(np.maximum(np.einsum("mkk->mk", block), 1e-300))
            block = block * scale[:, :, None] * scale[:, None, :] + 1e-15 * np.eye(free.sum())
            value[:, free] = np.linalg.solve(block, (rest[:, free] * scale)[:, :, None])[:, :, 0] * scale
        allowed = (value[:, free] >= 0).all(axis=1)
        if form.has_floor and free[0]:
            allowed &= value[:, 0] <= cap[rows]
        left = answers[rows] - np.einsum("mnk,mk->mn", weighted[rows], value)
        sse = np.where(allowed, np.einsum("mn,mn->m", left, left), np.inf)
        better = sse < best[rows]
        chosen = rows[better]
        best[chosen], coefficients[chosen], inside[chosen] = sse[better], value[better], free
        if all(state in ("free", "held") for state in states):
            pending[rows[allowed]] = False  # the unconstrained optimum is allowed, so it is the optimum
    return coefficients, best, inside


def _active_sets(num: int, held: set[int], has_floor: bool) -> list[tuple[str, ...]]:
    """Which coefficients are free, at 0, at their cap, or held; the one with all free first."""
    choices = []
    for k in range(num):
        choices.append(
            ("held",) if k in held else ("free", "cap", "zero") if k == 0 and has_floor else ("free", "zero")
        )
    return sorted(product(*choices), key=lambda states: sum(state in ("zero", "cap") for state in states))


def refine(form: Form, z: Array, y: Array, w: Array, theta: Array, held: Held | None = None) -> Solution:
    """Levenberg-Marquardt over the exponents, coefficients solved at every step, for M fits at once.

    Args:
        z: normalised inputs [N, I].
        y, w: answers and weights [M, N].
        theta: starts [M, P].
        held: parameters that stay as they are.
    """
    held = held or Held()
    size = max(1, _CHUNK // (len(z) * len(form.coefficients) * (1 + len(form.exponents))))
    parts = [
        _refine(form, z, y[rows], w[rows], theta[rows], held.take(rows))
        for rows in np.array_split(np.arange(len(theta)), -(-len(theta) // size))
    ]
    return Solution(*(np.concatenate([getattr(part, name) for part in parts]) for name in Solution.__annotations__))


def _refine(form: Form, z: Array, y: Array, w: Array, theta: Array, held: Held) -> Solution:
    theta = theta.copy()
    for p, value in held.exponents.items():
        theta[:, p] = value
    moving = np.array([p not in held.exponents for p in range(theta.shape[1])])
    low, high = form.bounds.T
    coefficients, sse, inside = solve_linear(form, form.features(z, theta)[0], y, w, held)
    damping, active = np.full(len(theta), 1e-3), np.arange(len(theta))
    for _ in range(STEPS if moving.any() else 0):
        at = theta[active]
        step = _step(form, z, y[active], w[active], at, coefficients[active], inside[active], damping[active], moving)
        new = np.clip(at + step, low, high)
        for p, value in held.exponents.items():
            new[:, p] = value[active]
        found = solve_linear(form, form.features(z, new)[0], y[active], w[active], held.take(active))
        better = found[1] < sse[active]
        rows = active[better]
        gain = (sse[rows] - found[1][better]) / np.maximum(sse[rows], 1e-300)
        theta[rows], coefficients[rows], sse[rows], inside[rows] = (
            new[better], found[0][better], found[1][better], found[2][better],
        )  # fmt: skip
        damping[rows] = np.maximum(damping[rows] / 10, 1e-12)
        damping[active[~better]] *= 10
        moved = np.abs(new - at).max(axis=1)
        finished = (damping[active] > 1e8) | (moved < 1e-13)
        finished[better] |= (gain < 1e-14) & (moved[better] < 1e-9)
        active = active[~finished]
        if not len(active):
            break
    return Solution(coefficients, theta, sse)


def _step(
    form: Form, z: Array, y: Array, w: Array, theta: Array, coefficients: Array, inside: Array, damping: Array,
    moving: Array,
) -> Array:  # fmt: skip
    """The damped Gauss-Newton step [M, P] of the projected residuals (Kaufman's approximation)."""
    phi, slopes = form.features(z, theta)
    residual = (y - np.einsum("mnk,mk->mn", phi, coefficients)) * w
    jacobian = np.einsum("mnkp,mk->mnp", slopes, coefficients, optimize=True) * w[:, :, None] * moving
    columns = phi * w[:, :, None] * inside[:, None, :]
    norms = np.sqrt(np.einsum("mnk,mnk->mk", columns, columns))
    columns = columns / np.where(norms > 0, norms, 1.0)[:, None, :]
    gram = np.einsum("mnk,mnl->mkl", columns, columns, optimize=True)
    gram += np.einsum("mk,kl->mkl", np.where(norms > 0, 1e-15, 1.0), np.eye(columns.shape[2]))
    projected = np.linalg.solve(gram, np.einsum("mnk,mnp->mkp", columns, jacobian, optimize=True))
    jacobian = jacobian - np.einsum("mnk,mkp->mnp", columns, projected, optimize=True)
    normal = np.einsum("mnp,mnq->mpq", jacobian, jacobian, optimize=True)
    diagonal = np.einsum("mpp->mp", normal)
    damped = normal + np.einsum("mp,pq->mpq", damping[:, None] * diagonal + 1e-30 + ~moving, np.eye(theta.shape[1]))
    step = np.linalg.solve(damped, np.einsum("mnp,mn->mp", jacobian, residual)[:, :, None])[:, :, 0]
    return np.nan_to_num(step) * moving


def starts(form: Form, num: int, rng: np.random.Generator) -> Array:
    """Starts [num, P] over the bounds: a regular grid for up to two exponents, a random one for more.

    Exponents are spaced by their logarithms, since those of the field differ by factors.
    """
    num_exponents = len(form.exponents)
    if num_exponents > 2:
        share = rng.random((num, num_exponents))
    else:
        side = np.linspace(0, 1, max(2, round(num ** (1 / num_exponents))))
        share = np.stack(np.meshgrid(*[side] * num_exponents, indexing="ij"), axis=-1).reshape(-1, num_exponents)
    low, high = form.bounds.T
    spaced = low + share * (high - low)
    is_exponent = low > 0
    lowest = np.where(is_exponent, 0.02, 1.0)
    return np.where(is_exponent, lowest * (np.where(is_exponent, high, 1.0) / lowest) ** share, spaced)


def search(
    form: Form, z: Array, y: Array, w: Array, num_starts: int = 144, held: Held | None = None, seed: int = 0
) -> tuple[Solution, float]:
    """One fit from many starts: the best solution (M = 1), and the share of starts that reached it.

    Args: y, w: answers and weights [N].
    """
    theta = starts(form, num_starts, np.random.default_rng(seed))
    num = len(theta)
    held = held or Held()
    repeated = Held({k: np.repeat(v, num) for k, v in held.coefficients.items()},
                    {p: np.repeat(v, num) for p, v in held.exponents.items()})  # fmt: skip
    found = refine(form, z, np.tile(y, (num, 1)), np.tile(w, (num, 1)), theta, repeated)
    best = int(np.argmin(found.sse))
    tolerance = max(SAME_OPTIMUM * found.sse[best], 1e-16 * float(np.sum((w * y) ** 2)))
    share = float(np.mean(found.sse <= found.sse[best] + tolerance))
    return found.take(np.array([best])), share
