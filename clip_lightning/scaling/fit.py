"""Fits a form to points: estimate, share of starts that reached it, bootstrap, profiles, verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clip_lightning.errors import UserError
from clip_lightning.scaling.forms import FORMS, Array, Form, normalise
from clip_lightning.scaling.huber import DELTA, fit_huber
from clip_lightning.scaling.law import REACH_LIMIT, Law, Stage, budget_of
from clip_lightning.scaling.projection import Held, Solution, search
from clip_lightning.scaling.resampling import (
    Verdict,
    check_draws,
    draw,
    percentiles,
    profiles,
    resample,
    with_bootstrap,
)
from clip_lightning.scaling.table import Points, check_design

ESTIMATORS = ("variable_projection", "huber")
RESIDUALS = ("relative", "absolute")
NAMES = ("power", "power_floor", "shifted_floor", "surface", "bounded", "overtraining", "two_step")


@dataclass(frozen=True)
class Settings:
    """How a form is fitted.

    Attributes:
        estimator: variable_projection, or huber (of log residuals).
        residual: relative to the answer, or absolute; of variable projection.
        delta: where Huber's loss becomes linear.
        resample: residuals or runs, for the bootstrap.
        draws: of the bootstrap; 0: no intervals.
        with_profiles: whether profile likelihoods are computed.
        starts: of the search.
        chance: the value of guessing where the form has it (L0 of bounded, bottom of two_step); None: fitted.
        reach_limit: as a factor of the largest budget.
        flops_per_nd: k in the budget C = k n d of forms of n and d.
    """

    estimator: str = "variable_projection"
    residual: str = "relative"
    delta: float = DELTA
    resample: str = "residuals"
    draws: int = 500
    with_profiles: bool = True
    starts: int = 144
    seed: int = 0
    chance: float | None = None
    reach_limit: float = REACH_LIMIT
    flops_per_nd: float = 1.0


def fit(points: Points, form: str, settings: Settings | None = None, **data: str) -> Law:
    """Fits a form.

    Args:
        form: one of `NAMES`.
        data: what else to note about the data, such as its file.
    Raises: UserError: the points cannot determine the form, or an estimator is unknown.
    """
    settings = settings or Settings()
    check_draws(settings.draws, settings.resample, points.clusters)
    for value, names, flag in (
        (settings.estimator, ESTIMATORS, "--estimator"),
        (settings.residual, RESIDUALS, "--residual"),
        (form, NAMES, "--form"),
    ):
        if value not in names:
            raise UserError(f"{flag} {value}: there is no such one; write one of {', '.join(names)}")
    forms, answers = _stages_of(points, form)
    for one in forms:
        check_design(points, one)
    freedom, rng = max(len(points) - forms[0].num_parameters, 1), np.random.default_rng(settings.seed)
    factors = resample(settings.resample, points.clusters, settings.draws, freedom, rng)
    verdicts: dict[str, str] = {}
    stages, shares = [], []
    for one, y in zip(forms, answers, strict=True):
        stage, found, share = _fit_stage(one, points.matrix(one), y, settings, factors)
        prefix = "loss." if len(forms) == 2 and one is forms[0] else ""
        verdicts |= {prefix + name: str(verdict) for name, verdict in found.items()}
        stages.append(stage)
        shares.append(share)
    used = {role: points.inputs[role] for role in forms[0].inputs}
    ranges = {role: (float(value.min()), float(value.max())) for role, value in used.items()}
    budget = budget_of(used, settings.flops_per_nd)
    ranges["budget"] = (float(budget.min()), float(budget.max()))
    noted = {**settings.__dict__, "share_of_starts_at_optimum": min(shares)}
    return Law(
        form, settings.estimator, points.columns, points.kind, tuple(stages), ranges,
        {"fingerprint": points.fingerprint(), "num_points": len(points), **data}, verdicts, noted,
    )  # fmt: skip


def _stages_of(points: Points, form: str) -> tuple[list[Form], list[Array]]:
    if form == "two_step":
        return [FORMS["power_floor"], FORMS["sigmoid"]], [points.inputs["loss"], points.y]
    if form == "bounded" and "u" in points.inputs:
        form = "bounded_unique"
    return [FORMS[form]], [points.y]


def _fit_stage(
    form: Form, inputs: Array, y: Array, settings: Settings, factors: Array
) -> tuple[Stage, dict[str, Verdict], float]:
    z, scales = normalise(form, inputs)
    # The answer, too, loses its size: the bounds of the search are for numbers about 1.
    size = 1.0 if form.is_rising else float(np.exp(np.log(y).mean()))
    y = y / size
    w = np.ones_like(y) if settings.residual == "absolute" or form.is_rising else 1 / y
    held = _held(form, settings.chance, size)
    draws = Solution(np.zeros((0, len(form.coefficients))), np.zeros((0, len(form.exponents))), np.zeros(0))
    if settings.estimator == "huber" and not form.is_rising and not held.coefficients:
        found = fit_huber(form, z, y, num_starts=settings.starts, delta=settings.delta, seed=settings.seed)
        solution, share = found.solution, found.share
        if settings.draws:
            draws = _huber_draws(form, z, y, solution, settings, factors)
    else:
        solution, share = search(form, z, y, w, settings.starts, held, settings.seed)
        if settings.draws:
            draws = draw(form, z, y, w, solution, settings.resample, factors, held)
    fitted = form.features(z, solution.theta)[0][0] @ solution.coefficients[0]
    freedom = max(len(y) - form.num_parameters + len(held.coefficients), 1)
    sigma = float(np.sqrt(np.sum(((y - fitted) * w) ** 2) / freedom))
    if settings.residual == "absolute":
        sigma *= size
    both = np.concatenate([draws.coefficients, draws.theta], axis=1)
    verdicts = _verdicts(form, z, y, w, solution, held, both, settings)
    both[:, : len(form.coefficients)] *= size
    stage = Stage(form.name, scales, solution.coefficients[0] * size, solution.theta[0], both, sigma, freedom)
    return stage, verdicts, share


def _held(form: Form, chance: float | None, size: float) -> Held:
    if chance is None or form.name not in ("bounded", "bounded_unique", "sigmoid"):
        return Held()
    return Held({0 if form.is_rising else 1: np.array([chance / size])}, {})


def _huber_draws(form: Form, z: Array, y: Array, solution: Solution, settings: Settings, factors: Array) -> Solution:
    """Each draw from the estimate; residuals are those of the logarithm."""
    fitted = form.features(z, solution.theta)[0][0] @ solution.coefficients[0]
    residuals = np.log(y / fitted) * np.sqrt(len(y) / max(len(y) - form.num_parameters, 1))
    found = []
    for row in factors:
        if settings.resample == "runs":
            taken = np.repeat(np.arange(len(y)), row.astype(int))
            one = fit_huber(form, z[taken], y[taken], delta=settings.delta, start=solution.theta[0])
        else:
            one = fit_huber(form, z, fitted * np.exp(residuals * row), delta=settings.delta, start=solution.theta[0])
        found.append(one.solution)
    return Solution(*(np.concatenate([getattr(one, name) for one in found]) for name in Solution.__annotations__))


def _verdicts(
    form: Form, z: Array, y: Array, w: Array, solution: Solution, held: Held, draws: Array, settings: Settings
) -> dict[str, Verdict]:
    """By the parameter's name in the units of the table; judged without units, so that these do not matter."""
    names = [*form.coefficients, *form.exponents]
    found = profiles(form, z, y, w, solution, held) if settings.with_profiles else {}
    verdicts = {}
    for index, name in enumerate(names):
        if index in held.coefficients:
            continue
        is_log = name.startswith("log_") or name == "middle"
        verdict = found.get(name, Verdict(None, None, ""))
        if len(draws):
            low, high = percentiles(draws[:, index])
            verdict = with_bootstrap(verdict, float(low), float(high), is_log)
        verdicts["L0" if name == "middle" else name.removeprefix("log_")] = verdict
    return verdicts


def others(points: Points, law: Law, settings: Settings) -> list[Law]:
    """The form of a law by the other estimators, without intervals: what the choice of the estimator changes."""
    quick = replace(settings, draws=0, with_profiles=False)
    return [fit(points, law.form, replace(quick, estimator=name)) for name in ESTIMATORS if name != law.estimator]


def split(points: Points, held_out: Sequence[bool] | Array) -> tuple[Points, Points]:
    """The points to fit, and those that are held out. Raises: UserError: one of them is empty."""
    mask = np.asarray(held_out, bool)
    if mask.all() or not mask.any():
        raise UserError(
            f"--holdout: the condition holds out {'every row' if mask.all() else 'no row'}; choose a value between "
            "the least and the largest of that column"
        )
    return points.take(~mask), points.take(mask)
