"""The verb check: how far a law can be trusted, by fits on a part of the runs that are tested on the rest.

Back-tests fit below growing budgets and predict above them; leave-one-group-out fits without one value of a column; the
simulated studies draw data from the fitted law on the same design and count how often the interval of the prediction
holds the true value.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clip_lightning.errors import UserError
from clip_lightning.formatting import aligned, percent
from clip_lightning.scaling import fit_command
from clip_lightning.scaling.allocation import groups_of
from clip_lightning.scaling.fit import Settings, fit
from clip_lightning.scaling.forms import FORMS, Array, normalise
from clip_lightning.scaling.law import Law, budget_of, plain, write_complete
from clip_lightning.scaling.projection import Held, refine, starts
from clip_lightning.scaling.resampling import percentiles, resample
from clip_lightning.scaling.table import Points, of_table, read_table, select

HELP = "back-test a form, leave groups out, and measure the coverage of its intervals"
_MOST_CUTS = 8
# Of simulated studies: where the law is predicted, as a factor of the largest budget.
FACTOR = 3.0


@dataclass(frozen=True)
class Test:
    """A fit on some rows, tested on others.

    Attributes:
        name: the cut-off, or the group that was left out.
        reach: largest budget that was tested, as a factor of the largest that was fitted.
        error, relative_error, bias: means, in the units of the column y; None where the fit was refused.
        coverage: share of runs inside their 95 % interval.
        reason: why the fit was refused.
    """

    name: str
    num_fitted: int
    num_tested: int
    reach: float | None = None
    error: float | None = None
    relative_error: float | None = None
    bias: float | None = None
    coverage: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Coverage:
    """Simulated studies.

    Attributes:
        share: of studies whose 95 % interval of the prediction holds the true value.
        width: mean width of that interval as a share of the true value.
    """

    num_studies: int
    factor: float
    share: float
    width: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of check."""
    fit_command.add_table_arguments(parser)
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="COLUMN", help="columns whose groups are left out"
    )
    parser.add_argument("--studies", type=int, default=0, help="simulated studies of the coverage (200 take a minute)")
    parser.add_argument("--json", type=Path, metavar="OUT")


def run(arguments: argparse.Namespace) -> int:
    """Prints the tests, and writes them."""
    table = select(read_table(arguments.table), arguments.where)
    points, k = fit_command.read_points(arguments, table)
    settings = fit_command.settings_of(arguments, k)
    found: dict[str, Any] = {"back_tests": back_tests(points, arguments.form, settings)}
    print(describe("cut-off", found["back_tests"]))
    for name in arguments.leave_out:
        groups = of_table(table, name).loc[points.rows]
        found[f"without {name}"] = leave_one_out(points, groups, arguments.form, settings)
        print(f"\n{describe(f'without {name}', found[f'without {name}'])}")
    if arguments.studies:
        law = fit(points, arguments.form, replace(settings, draws=0, with_profiles=False))
        one = simulate(law, points, settings, arguments.studies)
        found["coverage"] = one
        print(
            f"\ncoverage   {percent(one.share)} of {one.num_studies} simulated studies on this design hold the true "
            f"value at {one.factor:g} times the largest budget in their 95 % interval, {percent(one.width, 2)} wide"
        )
    if arguments.json:
        write_complete(arguments.json, json.dumps(plain(_as_dict(found)), indent=1) + "\n")
    return 0


def _as_dict(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [asdict(one) for one in value] if isinstance(value, list) else asdict(value)
        for name, value in found.items()
    }


def describe(name: str, tests: Sequence[Test]) -> str:
    """The tests as a table."""
    lines: list[tuple[str, ...]] = [(name, "fitted", "tested", "reach", "error", "relative", "bias", "coverage", "")]
    for one in tests:
        numbers = [
            f"{one.reach:.3g}x" if one.reach is not None else "-",
            f"{one.error:.4g}" if one.error is not None else "-",
            percent(one.relative_error, 2) if one.relative_error is not None else "-",
            f"{one.bias:+.4g}" if one.bias is not None else "-",
            percent(one.coverage, 0) if one.coverage is not None else "-",
        ]
        lines.append((one.name, str(one.num_fitted), str(one.num_tested), *numbers, one.reason))
    return aligned(lines)


def back_tests(points: Points, form: str, settings: Settings) -> list[Test]:
    """Fits below each cut-off of the budget and tests on all that is above it.

    Raises: UserError: there is one budget only.
    """
    budget = budget_of(points.inputs, settings.flops_per_nd)
    ends = [float(budget[rows].max()) for rows in groups_of(budget)][:-1]
    if not ends:
        raise UserError(f"check: all {len(points)} rows have one budget, so nothing is above a cut-off; add budgets")
    if len(ends) > _MOST_CUTS:
        ends = [ends[k] for k in np.unique(np.linspace(0, len(ends) - 1, _MOST_CUTS).round().astype(int))]
    return [_test(points, budget <= end, f"{end:.3g}", form, settings) for end in ends]


def leave_one_out(points: Points, groups: pd.Series, form: str, settings: Settings) -> list[Test]:
    """Fits without each group and tests on it."""
    words = groups.astype(str).to_numpy()
    return [_test(points, words != value, value, form, settings) for value in dict.fromkeys(words)]


def _test(points: Points, keep: Array, name: str, form: str, settings: Settings) -> Test:
    fitted, tested = points.take(keep), points.take(~keep)
    try:
        law = fit(fitted, form, replace(settings, with_profiles=False, draws=min(settings.draws, 200)))
    except UserError as error:
        return Test(name, len(fitted), len(tested), reason=f"refused: {error.problems[0]}")
    _, summary = fit_command.test(law, tested)
    return Test(
        name, len(fitted), len(tested), summary["largest_reach"], summary["mean_absolute_error"],
        summary["mean_relative_error"], summary["bias"], summary["coverage"],
    )  # fmt: skip


def simulate(
    law: Law, points: Points, settings: Settings, num_studies: int, factor: float = FACTOR, noise: float | None = None
) -> Coverage:
    """Draws studies from the law on the design of the points, fits each with its bootstrap, all in one batch.

    Args:
        factor: where the law is predicted: the best run of the largest budget, its inputs scaled to so much more.
        noise: standard deviation of a run's relative residual; None: that of the fit.
    Raises: UserError: the law has two steps.
    """
    if len(law.stages) > 1:
        raise UserError("--studies: a law of two steps is not simulated; check its first step as --form power_floor")
    stage, rng = law.stages[0], np.random.default_rng(settings.seed)
    form = FORMS[stage.form]
    inputs = points.matrix(form)
    z, _ = normalise(form, inputs, stage.scales)
    truth = stage.predict(inputs)
    size = np.exp(np.log(truth).mean())
    y0 = truth / size
    spread = stage.sigma if noise is None else noise
    relative = settings.residual == "relative"
    y = y0 * np.exp(spread * rng.standard_normal((num_studies, len(y0)))) if relative else (
        y0 + spread / size * rng.standard_normal((num_studies, len(y0)))
    )  # fmt: skip
    w = 1 / y if relative else np.ones_like(y)
    begin = np.concatenate([stage.theta[None], starts(form, 16, rng)])
    found = refine(form, z, np.repeat(y, len(begin), 0), np.repeat(w, len(begin), 0), np.tile(begin, (num_studies, 1)))
    best = found.sse.reshape(num_studies, len(begin)).argmin(axis=1) + np.arange(num_studies) * len(begin)
    solution = found.take(best)
    fitted = np.einsum("mnk,mk->mn", form.features(z, solution.theta)[0], solution.coefficients)
    num = settings.draws
    freedom = max(len(y0) - form.num_parameters, 1)
    factors = np.stack([resample(settings.resample, points.clusters, num, freedom, rng) for _ in range(num_studies)])
    each = np.repeat(np.arange(num_studies), num)
    factors = factors.reshape(len(each), -1)
    inflation = np.sqrt(len(y0) / freedom)
    if settings.resample == "residuals":
        answers, weights = fitted[each] + (y - fitted)[each] * inflation * factors, w[each]
    else:
        answers, weights = y[each], w[each] * np.sqrt(factors)
    draws = refine(form, z, answers, weights, solution.theta[each], Held())
    place = _beyond(points, inputs, law, factor)
    target, _ = normalise(form, place, stage.scales)
    values = np.einsum("mnk,mk->mn", form.features(target, draws.theta)[0], draws.coefficients)[:, 0]
    low, high = percentiles(values.reshape(num_studies, num).T)
    true_value = float(stage.predict(place)[0]) / size
    inside = (low <= true_value) & (true_value <= high)
    return Coverage(num_studies, factor, float(inside.mean()), float(np.mean(high - low) / true_value))


def _beyond(points: Points, inputs: Array, law: Law, factor: float) -> Array:
    """The inputs [1, I] of the best run of the largest budget, scaled to `factor` times that budget."""
    form = FORMS[law.stages[0].form]
    budget = budget_of(points.inputs, law.flops_per_nd)
    rows = groups_of(budget)[-1]
    best = rows[np.argmin(points.y[rows])]
    powers = [1.0 if role == "x" else 0.5 for role in form.inputs]
    place: Array = inputs[best : best + 1] * factor ** np.array(powers)
    return place
