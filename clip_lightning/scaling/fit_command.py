"""The verb fit: `python -m clip_lightning.scaling fit --table FILE --x COLUMN --y COLUMN --form FORM --json OUT`."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clip_lightning.errors import UserError
from clip_lightning.formatting import aligned, percent
from clip_lightning.scaling import allocation
from clip_lightning.scaling.fit import ESTIMATORS, NAMES, RESIDUALS, Settings, fit, others, split
from clip_lightning.scaling.forms import FORMS, Array
from clip_lightning.scaling.huber import DELTA
from clip_lightning.scaling.law import REACH_LIMIT, Law, Prediction
from clip_lightning.scaling.resampling import METHODS
from clip_lightning.scaling.table import Points, matches, points_of, read_table, select

# The columns that `collect` writes.
_DEFAULTS = {"x": "model_flops", "n": "flops_per_sample", "d": "samples_seen", "u": "unique_samples"}
_ROLES = {
    "power": ("x",), "power_floor": ("x",), "shifted_floor": ("x",), "surface": ("n", "d"), "bounded": ("n", "d"),
    "overtraining": ("n", "d"), "two_step": ("x", "loss"),
}  # fmt: skip
HELP = "fit a form to a table, with intervals and verdicts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of fit."""
    add_table_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="where the fit is written")
    parser.add_argument("--holdout", metavar="COLUMN>VALUE", help="fit on the other rows; print error and coverage")
    parser.add_argument("--predict", nargs="+", default=[], metavar="x=1e21", help="places; n=1e9,d=1e10 for a surface")
    parser.add_argument("--beyond-reach", action="store_true", help="also predict past the reach limit")


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say which table is fitted how; check and compare have them, too."""
    parser.add_argument("--table", type=Path, required=True, help="CSV, JSONL or parquet, one row per run")
    parser.add_argument("--where", nargs="+", default=[], metavar="COLUMN=VALUE", help="rows to use")
    parser.add_argument("--form", choices=NAMES, required=True)
    parser.add_argument("--x", help="column of the compute budget (default model_flops)")
    parser.add_argument("--y", help="column of the answer (default val_loss_*)")
    parser.add_argument("--n", help="column of the model's size (default flops_per_sample)")
    parser.add_argument("--d", help="column of the samples seen (default samples_seen)")
    parser.add_argument("--unique", dest="u", help="column of the unique samples, for bounded")
    parser.add_argument("--loss", help="column of the loss between compute and accuracy, for two_step")
    parser.add_argument("--kind", choices=("loss", "error", "accuracy"), help="of --y (default: by its name)")
    parser.add_argument("--cluster", help="column of groups of rows that the bootstrap draws as one")
    parser.add_argument("--flops-per-nd", type=float, help="k in C = k n d (default: from --x; else 6, of FLOPs 1)")
    parser.add_argument("--estimator", choices=ESTIMATORS, default=ESTIMATORS[0])
    parser.add_argument("--residual", choices=RESIDUALS, default=RESIDUALS[0])
    parser.add_argument("--huber-delta", type=float, default=DELTA)
    parser.add_argument("--resample", choices=METHODS, help="default: residuals; runs with --cluster")
    parser.add_argument("--draws", type=int, default=500, help="of the bootstrap; 0: no intervals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chance", type=float, help="value of guessing: L0 of bounded, bottom of two_step")
    parser.add_argument("--reach", type=float, default=REACH_LIMIT, help="limit, as a factor of the largest budget")


def run(arguments: argparse.Namespace) -> int:
    """Fits, prints, writes."""
    table = select(read_table(arguments.table), arguments.where)
    points, k = read_points(arguments, table)
    kept, held_out = points, None
    if arguments.holdout:
        mask = matches(table, arguments.holdout)
        kept, held_out = split(points, mask.loc[points.rows].to_numpy())
    law = fit(kept, arguments.form, settings_of(arguments, k), file=arguments.table.name)
    print(describe(law))
    print(f"\n{_side_by_side(kept, law, settings_of(arguments, k))}")
    found: dict[str, Any] = {}
    if arguments.form == "surface":
        allocations, lines = allocate(kept, law, k)
        print("\n" + "\n".join(lines))
        found["allocations"] = [asdict(one) for one in allocations]
    for sentence in allocation.outliers(kept, residuals_of(law, kept)):
        print(sentence)
    predictions: list[dict[str, Any]] = []
    if held_out is not None:
        made, summary = test(law, held_out)
        print(f"\n{describe_test(summary)}")
        predictions += made
        found["holdout"] = {"condition": arguments.holdout, **summary}
    for place in arguments.predict:
        for one in law.predict(_place(place), beyond_reach=arguments.beyond_reach):
            print(f"predicted {law.columns['y']} {one}")
            predictions.append(asdict(one))
    if arguments.json:
        law.save(arguments.json, predictions=predictions, **found)
        print(f"written    {arguments.json}")
    return 0


def read_points(arguments: argparse.Namespace, table: pd.DataFrame) -> tuple[Points, float]:
    """The points that the flags name, and k in C = k n d."""
    wanted = _ROLES[arguments.form]
    columns: dict[str, Any] = {role: getattr(arguments, role) or _DEFAULTS.get(role) for role in wanted}
    if "loss" in wanted and not arguments.loss:
        raise UserError("--form two_step also needs --loss COLUMN, the loss between compute and accuracy")
    for role in ("x", "u") if "n" in wanted else ():
        if getattr(arguments, role):
            columns[role] = getattr(arguments, role)
    columns["y"] = arguments.y or next((name for name in table if str(name).startswith("val_loss_")), "val_loss_1024")
    points = points_of(table, columns, arguments.form, arguments.kind, arguments.cluster)
    if "n" not in wanted:
        return points, 1.0
    k = _flops_per_nd(arguments, points)
    if arguments.form == "overtraining" and "x" not in points.inputs:
        points.inputs["x"] = k * points.inputs["n"] * points.inputs["d"]
    return points, k


def _flops_per_nd(arguments: argparse.Namespace, points: Points) -> float:
    if arguments.flops_per_nd:
        return float(arguments.flops_per_nd)
    if "x" in points.inputs:
        return float(np.median(points.inputs["x"] / (points.inputs["n"] * points.inputs["d"])))
    return 1.0 if "flop" in points.columns["n"].lower() else 6.0


def settings_of(arguments: argparse.Namespace, k: float) -> Settings:
    """What the flags say about the fit.

    Args: k: in C = k n d.
    """
    return Settings(
        estimator=arguments.estimator,
        residual=arguments.residual,
        delta=arguments.huber_delta,
        resample=arguments.resample or ("runs" if arguments.cluster else "residuals"),
        draws=arguments.draws,
        seed=arguments.seed,
        chance=arguments.chance,
        reach_limit=arguments.reach,
        flops_per_nd=k,
    )


def describe(law: Law) -> str:
    """The law for a person: formula, parameters, intervals, verdicts."""
    formulas = " ; ".join(FORMS[stage.form].formula for stage in law.stages)
    share = law.settings["share_of_starts_at_optimum"]
    head = [
        f"{law.form}  {formulas}",
        f"{law.data['num_points']} points of {law.data['file']} ({law.data['fingerprint']}), "
        f"{law.columns['y']} as {'error 1 - ' * (law.kind == 'accuracy' and law.form != 'two_step')}{law.kind}",
        f"{law.estimator.replace('_', ' ')}, {law.settings['residual']} residuals; {percent(share, 0)} of "
        f"{law.settings['starts']} starts reached the optimum; seed {law.settings['seed']}",
        f"budgets {law.ranges['budget'][0]:.3g} to {law.ranges['budget'][1]:.3g}, "
        f"predictions up to {law.settings['reach_limit']:g} times the largest",
    ]
    intervals = law.intervals
    lines = [("parameter", "value", "95% interval", "verdict")]
    for name, value in law.parameters.items():
        ends = f"[{intervals[name][0]:.4g}, {intervals[name][1]:.4g}]" if name in intervals else "-"
        lines.append((name, f"{value:.6g}", ends, law.verdicts.get(name, "held")))
    return "\n".join(head) + "\n" + aligned(lines)


def _side_by_side(points: Points, law: Law, settings: Settings) -> str:
    laws = [law, *others(points, law, replace(settings, starts=25))]
    names = list(law.parameters)
    lines = [("estimator", *names, "starts at the optimum")]
    for one in laws:
        share = percent(one.settings["share_of_starts_at_optimum"], 0)
        lines.append((one.estimator.replace("_", " "), *(f"{one.parameters[name]:.5g}" for name in names), share))
    return aligned(lines)


def allocate(points: Points, law: Law, k: float) -> tuple[list[allocation.Allocation], list[str]]:
    """The allocation by every method, and lines for a person; a method that refuses gives its reason."""
    raw = law.stages[0]
    found, lines = [], [f"allocation, C = {k:.4g} n d"]
    attempts = {
        "surface": lambda: allocation.surface_allocation(raw.parameters(), raw.parameters(draws=True), k),
        "isoflop": lambda: allocation.isoflop_allocation(points, k),
        "pareto": lambda: allocation.pareto_allocation(points, k),
    }
    for name, attempt in attempts.items():
        try:
            one = attempt()
        except UserError as error:
            lines.append(f"{name:9}{'' if str(error).startswith(name) else name + ': '}{error}")
            continue
        found.append(one)
        lines.append(f"{name:9}{one}{''.join(f'; {note}' for note in one.notes)}")
        if name == "isoflop" and (bias := allocation.parabola_bias(points, law.parameters, k)):
            lines.append(
                f"         if the surface were true, the parabolas' exponent would be off by {bias[0]:+.4f}, their "
                f"intercept by {bias[1]:+.4f}, and d* at the largest budget by {percent(bias[2], 2)} on this grid"
            )
    return found, lines


def test(law: Law, points: Points) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Predictions of points that were not fitted, with what was observed, and their errors and coverage."""
    made = law.predict({role: points.inputs[role] for role in law.roles}, beyond_reach=True)
    observed = 1 - points.y if law.kind == "accuracy" and law.form != "two_step" else points.y
    values = np.array([one.value for one in made])
    summary: dict[str, Any] = {
        "rows": points.rows.tolist(),
        "mean_absolute_error": float(np.abs(values - observed).mean()),
        "mean_relative_error": float(np.abs(values / observed - 1).mean()),
        "bias": float((values - observed).mean()),
        "coverage": coverage(made, observed),
        "largest_reach": max(one.reach for one in made),
    }
    rows = [
        {**asdict(one), "observed": float(seen), "row": int(row)}
        for one, seen, row in zip(made, observed, points.rows, strict=True)
    ]
    return rows, summary


def coverage(predictions: list[Prediction], observed: Array) -> float | None:
    """The share of runs inside their 95 % interval; None without intervals."""
    inside = [
        one.run_low <= seen <= one.run_high
        for one, seen in zip(predictions, observed, strict=True)
        if one.run_low is not None and one.run_high is not None
    ]
    return float(np.mean(inside)) if inside else None


def describe_test(summary: Mapping[str, Any]) -> str:
    """A line about what was held out."""
    inside = summary["coverage"]
    covered = "" if inside is None else f", {percent(inside, 0)} inside the 95 % interval of a run"
    return (
        f"held out   {len(summary['rows'])} rows: mean absolute error {summary['mean_absolute_error']:.4g}, relative "
        f"{percent(summary['mean_relative_error'], 4)}, bias {summary['bias']:+.4g}{covered}; up to "
        f"{summary['largest_reach']:.3g} times the largest budget that was fitted"
    )


def residuals_of(law: Law, points: Points) -> Array:
    """Relative residuals [N] of the answers as the law sees them."""
    values = law.values({role: points.inputs[role] for role in law.roles})
    values = 1 - values if law.kind == "accuracy" and law.form != "two_step" else values
    residuals: Array = points.y / values - 1
    return residuals


def _place(text: str) -> dict[str, Array]:
    try:
        return {role: np.array([float(value)]) for role, _, value in (part.partition("=") for part in text.split(","))}
    except ValueError as error:
        raise UserError(f"--predict {text}: write a place as x=1e21, or n=1e9,d=1e10") from error
