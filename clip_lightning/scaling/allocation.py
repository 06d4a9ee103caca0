"""The best split of a budget between model and data: from a surface, from isoFLOP parabolas, from a Pareto frontier.

n is a model's size, d the amount of data, and the budget C = k n d: k is 6 for parameters and tokens (Kaplan et al.
2020), 1 where n is the FLOPs of a sample and d samples. The three estimators differ on one data set, so all are shown.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.interpolate import Akima1DInterpolator
from scipy.optimize import minimize_scalar

from clip_lightning.errors import UserError
from clip_lightning.formatting import listed
from clip_lightning.scaling.forms import Array
from clip_lightning.scaling.resampling import percentiles
from clip_lightning.scaling.table import SAME_VALUE, Points, num_distinct

METHODS = ("surface", "isoflop", "pareto")


@dataclass(frozen=True)
class Allocation:
    """The optimal size n* = 10^intercept C^exponent; that of the data is d* = C / (k n*).

    Attributes:
        method: surface, isoflop or pareto.
        exponent, intercept: of the base-10 logarithms.
        low, high: 95 % interval of the exponent; None where it is not known.
        notes: budgets that were refused, and the known bias.
    """

    method: str
    exponent: float
    intercept: float
    low: float | None = None
    high: float | None = None
    notes: tuple[str, ...] = ()

    def best_n(self, budget: float) -> float:
        """n* of a budget."""
        return float(10 ** (self.intercept + self.exponent * np.log10(budget)))

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"n* ~ C^{self.exponent:.3f}{interval}, d* ~ C^{1 - self.exponent:.3f}"


@dataclass(frozen=True)
class Vertex:
    """The least point of one budget's parabola: budget, log10 of n or d there, answer; `reason` why it is refused."""

    budget: float
    position: float
    value: float
    curvature: float
    reason: str = ""


def of_surface(parameters: dict[str, Array], k: float = 1.0) -> tuple[Array, Array]:
    """Exponent and intercept of n*, for parameters A, B, alpha, beta of any equal shape.

    Hoffmann et al. 2022, equation 4.
    """
    a, b, alpha, beta = (np.asarray(parameters[name], float) for name in ("A", "B", "alpha", "beta"))
    if not ((a > 0) & (b > 0)).any():
        raise UserError("the surface does not depend on n or on d (A or B is 0), so it has no optimum; add runs")
    exponent = beta / (alpha + beta)
    with np.errstate(divide="ignore"):  # a draw without one of the terms has no optimum
        ratio = np.log10(alpha * a) - np.log10(beta * b)
    return exponent, ratio / (alpha + beta) - exponent * np.log10(k)


def surface_allocation(parameters: dict[str, Array], draws: dict[str, Array], k: float = 1.0) -> Allocation:
    """From a fitted surface and its bootstrap draws, which may be empty."""
    exponent, intercept = of_surface(parameters, k)
    ends: tuple[float, float] | tuple[None, None] = (None, None)
    if len(draws["A"]):
        low, high = percentiles(of_surface(draws, k)[0])
        ends = float(low), float(high)
    return Allocation("surface", float(exponent[0]), float(intercept[0]), *ends)


def groups_of(budget: Array) -> list[Array]:
    """Indices of the points of each budget; budgets that differ by less than 2 % are one."""
    order = np.argsort(budget)
    cuts = np.flatnonzero(np.diff(np.log(budget[order])) > np.log1p(SAME_VALUE)) + 1
    return list(np.split(order, cuts))


def vertex(position: Array, y: Array, budget: float, interpolation: str = "parabola") -> Vertex:
    """The least point of one budget.

    Args:
        position: log10 of n (or of d), [N]; several runs of one position are averaged.
        interpolation: parabola (Hoffmann et al. 2022, approach 2), or akima (Porian et al. 2024), in log y.
    """
    places = np.unique(np.round(position, 6))
    means = np.array([y[np.round(position, 6) == place].mean() for place in places])
    if len(places) < 3:
        return Vertex(budget, np.nan, np.nan, np.nan, f"{len(places)} model sizes, and a minimum needs three")
    least = int(np.argmin(means))
    if least in (0, len(places) - 1):
        end = "smallest" if least == 0 else "largest"
        return Vertex(
            budget, float(places[least]), float(means[least]), np.nan,
            f"edge minimum: the {end} value is the best, so the optimum may lie outside the ladder",
        )  # fmt: skip
    if interpolation == "akima":
        curve = Akima1DInterpolator(places, np.log(means))
        found = minimize_scalar(curve, bounds=(places[least - 1], places[least + 1]), method="bounded")
        return Vertex(budget, float(found.x), float(np.exp(found.fun)), float(curve.derivative(2)(found.x)))
    centre = places.mean()
    curvature, slope, constant = np.polyfit(position - centre, y, 2)
    if curvature <= 0:
        return Vertex(budget, np.nan, np.nan, float(curvature), "the parabola opens downwards")
    place = -slope / (2 * curvature)
    value = constant - slope**2 / (4 * curvature)
    outside = not places[0] <= centre + place <= places[-1]
    reason = "edge minimum: the parabola's vertex lies outside the ladder" if outside else ""
    return Vertex(budget, float(centre + place), float(value), float(curvature), reason)


def vertices(points: Points, k: float = 1.0, role: str = "n", interpolation: str = "parabola") -> list[Vertex]:
    """One for each budget of the points.

    Args: role: n or d, the quantity whose optimum is wanted.
    """
    budget = points.inputs.get("x", k * points.inputs["n"] * points.inputs["d"])
    logs = np.log10(points.inputs[role])
    return [
        vertex(logs[rows], points.y[rows], float(np.exp(np.log(budget[rows]).mean())), interpolation)
        for rows in groups_of(budget)
    ]


def power_through(budgets: Array, positions: Array, deviations: Array | None = None) -> tuple[float, float]:
    """Exponent and intercept of log10 n* over log10 C by least squares, weighted by 1 / deviation^2 where given."""
    weights = None if deviations is None else 1 / np.asarray(deviations)
    slope, intercept = np.polyfit(np.log10(budgets), positions, 1, w=weights)
    return float(slope), float(intercept)


def isoflop_allocation(points: Points, k: float = 1.0, interpolation: str = "parabola") -> Allocation:
    """From the parabola of every budget; edge minima are refused.

    Raises: UserError: fewer than two budgets have a minimum inside the ladder.
    """
    found = vertices(points, k, "n", interpolation)
    good = [one for one in found if not one.reason]
    notes = tuple(f"budget {one.budget:.3g}: {one.reason}" for one in found if one.reason)
    if len(good) < 2:
        raise UserError(
            f"isoflop: {len(good)} of {len(found)} budgets have a minimum inside the ladder, and an exponent needs "
            f"two; add models at the ends of the ladder ({listed(notes, 3)})"
        )
    budgets, positions = np.array([one.budget for one in good]), np.array([one.position for one in good])
    exponent, intercept = power_through(budgets, positions)
    ends: tuple[float, float] | tuple[None, None] = (None, None)
    if len(good) > 2:
        line = stats.linregress(np.log10(budgets), positions)
        half = float(stats.t.ppf(0.975, len(good) - 2) * line.stderr)
        ends = exponent - half, exponent + half
    return Allocation("isoflop", exponent, intercept, ends[0], ends[1], notes)


def parabola_bias(points: Points, parameters: dict[str, float], k: float = 1.0) -> tuple[float, float, float] | None:
    """What the isoFLOP parabolas find on this design if the fitted surface were the truth, without noise.

    "Approach 2" is biased where alpha and beta differ or a grid is off its centre (2603.22339).

    Returns: bias of the exponent, of the intercept, and of d* at the largest budget as a share; None where the
        parabolas find no exponent.
    """
    n, d = points.inputs["n"], points.inputs["d"]
    y = parameters["E"] + parameters["A"] * n ** -parameters["alpha"] + parameters["B"] * d ** -parameters["beta"]
    try:
        found = isoflop_allocation(Points(points.columns, points.inputs, y, "loss", points.rows, points.clusters), k)
    except UserError:
        return None
    exponent, intercept = of_surface({name: np.array([value]) for name, value in parameters.items()}, k)
    largest = float(points.inputs.get("x", k * n * d).max())
    true_n = 10 ** (float(intercept[0]) + float(exponent[0]) * np.log10(largest))
    share = true_n / found.best_n(largest) - 1
    return found.exponent - float(exponent[0]), found.intercept - float(intercept[0]), float(share)


def frontier(budget: Array, y: Array) -> Array:
    """Indices of the points that no other point beats with the same or a smaller budget, by budget.

    Budgets up to 2 % above the least of them are one: runs of an isoFLOP budget differ by the rounding of steps, and
    that order of theirs is no order of cost.
    """
    order = np.argsort(budget)
    best: list[int] = []
    start = -np.inf
    for k in order:
        if budget[k] > start * (1 + SAME_VALUE):
            start = budget[k]
            best.append(int(k))
        elif y[k] < y[best[-1]]:
            best[-1] = int(k)
    found = np.array(best)
    least = np.minimum.accumulate(y[found])
    return found[np.concatenate([[True], y[found][1:] < least[:-1]])]


def pareto_allocation(points: Points, k: float = 1.0) -> Allocation:
    """A line through log n over log C of the runs on the frontier of answer and budget.

    Raises: UserError: fewer than three runs or two sizes are on it.
    """
    budget = points.inputs.get("x", k * points.inputs["n"] * points.inputs["d"])
    rows = frontier(budget, points.y)
    if len(rows) < 3 or num_distinct(points.inputs["n"][rows]) < 2:
        raise UserError(
            f"pareto: {len(rows)} runs with {num_distinct(points.inputs['n'][rows])} model sizes are on the frontier, "
            "and an exponent needs three with two sizes; add runs at other budgets"
        )
    line = stats.linregress(np.log10(budget[rows]), np.log10(points.inputs["n"][rows]))
    half = float(stats.t.ppf(0.975, len(rows) - 2) * line.stderr)
    ends = float(line.slope) - half, float(line.slope) + half
    return Allocation("pareto", float(line.slope), float(line.intercept), *ends, (f"{len(rows)} runs on the frontier",))


def outliers(points: Points, residuals: Array) -> list[str]:
    """Points whose weighted residual is beyond 4 robust standard deviations, as sentences; none is deleted."""
    centre = np.median(residuals)
    spread = stats.median_abs_deviation(residuals, scale="normal")
    if spread < 1e-12:
        return []
    far = np.flatnonzero(np.abs(residuals - centre) > 4 * spread)
    return [
        f"row {points.rows[k]}: {abs(residuals[k] - centre) / spread:.1f} robust standard deviations from the law; "
        "look at that run, or leave it out by --where"
        for k in far
    ]
