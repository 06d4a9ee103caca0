"""A scaling study on two CPU cores: five sizes, four budgets, two seeds; the largest budget is predicted, then run.

`python -m experiments.studies.cpu_grid` does every step; each prints the command that it runs, and what is finished is
skipped when it is repeated. `predict` writes its file before a run of the largest budget exists, and refuses to after
that. What came out: docs/scaling_study.md, and in `results/cpu_grid` the files of the run that the page shows.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from clip_lightning.errors import UserError, run_command
from clip_lightning.formatting import aligned, percent
from experiments.studies.commands import cells_of, collect, run_steps, scaling, sweeps

# The ladder moves up with the budget, so that the optimum stays inside it and no run is too short.
LADDERS = {
    "smaller": ("tiny_eighth", "tiny_quarter", "tiny_three_eighths", "tiny_half"),
    "larger": ("tiny_quarter", "tiny_three_eighths", "tiny_half", "tiny_three_quarters"),
}
BUDGETS = {"smaller": ("4e10", "1e11"), "larger": ("2.52e11", "6.35e11")}
SEEDS = (0, 1)
CUT = 4e11  # FLOPs; the largest budget is above
# Guessing among 1,024 candidates has a loss of ln 1024 = 6.931, which the bounded form is given.
LAWS = {
    "surface": ("--form", "surface"),
    "bounded": ("--form", "bounded", "--chance", "6.931"),
    "accuracy": ("--form", "surface", "--y", "acc1"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.cpu_grid", description="A study on a CPU.")
    parser.add_argument("--runs", type=Path, default=Path("runs/cpu_grid"), metavar="DIR", help="folder of the runs")
    return run_steps(parser, STEPS, argv)


def plan(arguments: argparse.Namespace) -> None:
    """Writes an `experiment=` file for each cell."""
    for part, models in LADDERS.items():
        scaling("plan", "--models", *models, "--budgets", *BUDGETS[part], "--out", arguments.runs / "plan",
                "--json", arguments.runs / f"{part}.json")  # fmt: skip


def train_smaller(arguments: argparse.Namespace) -> None:
    """Runs all budgets but the largest."""
    _train(arguments.runs, [one for one in _cells(arguments.runs) if one["budget"] < CUT])


def predict(arguments: argparse.Namespace) -> None:
    """Fits the smaller budgets, and predicts each cell of the largest. Raises: UserError: one of those has been run."""
    table = collect(arguments.runs, arguments.out / "runs.csv")
    if len(_held_out(table)):
        raise UserError(f"{table} already has runs of the largest budget, so this would be no prediction")
    places = [
        f"n={one['flops_per_sample']:.0f},d={one['recipe']['samples']}"
        for one in _cells(arguments.runs)
        if one["budget"] > CUT
    ]
    for law in LAWS:
        _fit(table, law, arguments.out / f"prediction_{law}.json", "--predict", *places)


def train_largest(arguments: argparse.Namespace) -> None:
    """Runs the largest budget."""
    _train(arguments.runs, [one for one in _cells(arguments.runs) if one["budget"] > CUT])


def test(arguments: argparse.Namespace) -> None:
    """Compares the largest budget with what was predicted."""
    table = collect(arguments.runs, arguments.out / "runs.csv")
    for law in LAWS:
        file = arguments.out / f"prediction_{law}.json"
        prediction = json.loads(file.read_text(encoding="utf-8"))
        print(compared(prediction, _held_out(table)))
        draw(prediction, _held_out(table), arguments.out / f"prediction_{law}.png")


def fit(arguments: argparse.Namespace) -> None:
    """All budgets: every estimator with intervals and verdicts, back-tests, simulated coverage, one page."""
    out = arguments.out
    table = collect(arguments.runs, out / "runs.csv")
    for law in LAWS:
        _fit(table, law, out / f"fit_{law}.json")
        scaling("check", *_rows(table, law), "--leave-out", "model", "seed", "--studies", "200",
                "--json", out / f"check_{law}.json")  # fmt: skip
    _fit(table, "surface", out / "fit_huber.json", "--estimator", "huber", "--huber-delta", "1e-2")
    scaling("show", *_rows(table, "surface"), "--x", "model_flops", "--out", out / "page.png")


STEPS = {
    "plan": plan, "train_smaller": train_smaller, "predict": predict, "train_largest": train_largest, "test": test,
    "fit": fit,
}  # fmt: skip


def compared(prediction: Mapping[str, Any], rows: pd.DataFrame) -> str:
    """A table: every held-out run, what was predicted for its cell, whether it is inside the interval of a run.

    Args:
        prediction: the content of a fit's file, with predictions.
        rows: of the collected table.
    """
    metric = prediction["columns"]["y"]
    lines = [("model", "seed", "predicted", "95 % of a run", "observed", "error", "inside")]
    errors, inside = [], []
    for row in rows.to_dict("records"):
        one = min(prediction["predictions"], key=lambda found: abs(found["at"]["n"] / row["flops_per_sample"] - 1))
        seen = row[metric]
        errors.append(one["value"] / seen - 1)
        inside.append(one["run_low"] <= seen <= one["run_high"])
        ends = f"[{one['run_low']:.3f}, {one['run_high']:.3f}]"
        lines.append((row["model"], str(row["seed"]), f"{one['value']:.3f}", ends, f"{seen:.3f}", percent(errors[-1]),
                      "yes" if inside[-1] else "no"))  # fmt: skip
    mean = sum(map(abs, errors)) / len(errors)
    return (
        f"\n{metric} by {prediction['form']}, as predicted before\n{aligned(lines)}\n"
        f"mean absolute error {percent(mean, 2)}; {sum(inside)} of {len(inside)} inside the 95 % interval of a run"
    )


def draw(prediction: Mapping[str, Any], rows: pd.DataFrame, path: Path) -> None:
    """Every cell of the largest budget: the interval of a run as it was predicted, and the runs."""
    from clip_lightning.plots.style import BLUE, ORANGE, figure

    metric, cells = prediction["columns"]["y"], prediction["predictions"]
    sizes, values = [one["at"]["n"] for one in cells], [one["value"] for one in cells]
    ends = [
        [one["value"] - one["run_low"] for one in cells],
        [one["run_high"] - one["value"] for one in cells],
    ]
    with figure(4.6, 3.2) as drawn:
        axes = drawn.subplots()
        axes.errorbar(sizes, values, ends, fmt="o", color=BLUE, capsize=3, label="predicted, 95 % of runs")
        axes.scatter(rows.flops_per_sample, rows[metric], color=ORANGE, marker="x", zorder=3, label="run later")
        axes.set_xscale("log")
        axes.set_xlabel("FLOPs of a training sample, at equal FLOPs of a run")
        axes.set_ylabel(metric)
        axes.set_title(f"{prediction['form']} fitted to smaller budgets", fontsize=9)
        axes.legend()
    drawn.savefig(path)


def _cells(runs: Path) -> list[dict[str, Any]]:
    return [one for part in LADDERS for one in cells_of(runs / f"{part}.json")]


def _train(runs: Path, cells: Sequence[dict[str, Any]]) -> None:
    """One sweep for each seed, both at once; the shortest runs first."""
    names = ",".join(one["name"] for one in sorted(cells, key=lambda one: float(one["recipe"]["samples"])))
    sweeps(runs, runs / "plan", [[f"experiment={names}", f"compute.seed={seed}"] for seed in SEEDS])


def _held_out(table: Path) -> pd.DataFrame:
    found = pd.read_csv(table)
    return found[(found.model_flops > CUT) & (found.state == "finished")].sort_values(["flops_per_sample", "seed"])


def _rows(table: Path, law: str) -> list[object]:
    return ["--table", table, "--where", "state=finished", *LAWS[law]]


def _fit(table: Path, law: str, path: Path, *more: str) -> None:
    scaling("fit", *_rows(table, law), *more, "--json", path)


if __name__ == "__main__":
    run_command(main)
