"""What the dial loses: rungs 1 to 3 against a grid of models and rates at equal FLOPs; rung 4 against its prediction.

`python -m experiments.studies.dial` does every step; what is finished is skipped when it is repeated. Rungs are those
of `conf/scale`, which `plan --dial conf` writes from the fit of experiments.studies.cpu_grid. Each of the three smaller
rungs is compared with nine runs of its FLOPs: its model and the two next to it on the ladder, each at half, all and
twice the rate of its recipe. The grid has seed 0; its best run is then run with seed 1 too, since the best of nine is
partly luck; rungs have both seeds. What came out: docs/scaling_study.md.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clip_lightning import load_config
from clip_lightning.errors import UserError, run_command
from clip_lightning.formatting import aligned
from clip_lightning.scaling.costs import Cost, of_models
from clip_lightning.scaling.law import load, plain, write_complete
from clip_lightning.scaling.plan import LADDERS, Cell, Hardware, cell
from clip_lightning.scaling.presets import write_experiments
from clip_lightning.scaling.recipe import ANCHORS
from experiments.studies.commands import cells_of, collect, run_steps, scaling, sweeps

RUNGS, LAST = (1, 2, 3), 4
FACTORS = (0.5, 1.0, 2.0)  # of the recipe's learning rate
LEVEL = 0.9  # of the interval in which the last rung is expected
METRICS = ("val_loss_1024", "acc1")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.dial", description="The regret of the dial.")
    parser.add_argument("--runs", type=Path, default=Path("runs/dial"), metavar="DIR", help="folder of the runs")
    parser.add_argument("--study", type=Path, default=Path("runs/cpu_grid/runs.csv"), metavar="TABLE",
                        help="runs of cpu_grid, which the last rung is predicted from")  # fmt: skip
    return run_steps(parser, STEPS, argv)


def rung_of(number: int) -> tuple[Cost, float, dict[str, float]]:
    """The model of a rung of conf/scale, its FLOPs, and its place: n and d."""
    config = load_config(f"scale=r{number}", "data=scenes")
    cost, batch = of_models([config.model.name])[0], config.compute.global_batch
    samples = float(config.compute.duration.split()[0])
    per_sample = cost.per_sample(batch)
    return cost, per_sample * samples, {"n": per_sample, "d": samples}


def plan(arguments: argparse.Namespace) -> None:
    """Writes an `experiment=` file for each cell of the grids but the rungs themselves."""
    found: list[Cell] = []
    ladder = LADDERS["cpu"]
    for number in RUNGS:
        cost, budget, _ = rung_of(number)
        place = ladder.index(cost.name)
        for model in of_models(ladder[place - 1 : place + 2]):
            one = cell(model, budget, ANCHORS["cpu"], Hardware(1.0, 1.0))
            for factor in FACTORS:
                if model.name != cost.name or factor != 1:
                    recipe = replace(one.recipe, learning_rate=one.recipe.learning_rate * factor)
                    name = f"dial_r{number}_{model.name}_rate_{factor:g}".replace(".", "p")
                    found.append(replace(one, name=name, recipe=recipe))
    source = "python -m experiments.studies.dial plan"
    write_experiments(found, arguments.runs / "plan", data="scenes", compute="cpu_minutes", source=source)
    text = json.dumps(plain([asdict(one) for one in found]), indent=1)
    write_complete(arguments.runs / "grid.json", text + "\n")


def train_rungs(arguments: argparse.Namespace) -> None:
    """The three smaller rungs with two seeds."""
    rungs = ",".join(f"r{number}" for number in RUNGS)
    sweeps(arguments.runs, arguments.runs / "plan", [[f"scale={rungs}", f"compute.seed={seed}"] for seed in (0, 1)])


def train_grid(arguments: argparse.Namespace) -> None:
    """The grids, with seed 0; a half of the cells in each of two sweeps."""
    cells = sorted(cells_of(arguments.runs / "grid.json"), key=lambda one: float(one["recipe"]["samples"]))
    names = [one["name"] for one in cells]
    halves = [",".join(names[start::2]) for start in (0, 1)]
    sweeps(arguments.runs, arguments.runs / "plan", [[f"experiment={half}", "compute.seed=0"] for half in halves])


def train_best(arguments: argparse.Namespace) -> None:
    """The best cell of each grid by accuracy, with seed 1, unless it is the rung."""
    table = pd.read_csv(collect(arguments.runs, arguments.out / "runs_dial.csv"))
    best = {_best(table, number).compute for number in RUNGS} - {f"scale_r{number}" for number in RUNGS}
    if best:
        sweeps(arguments.runs, arguments.runs / "plan", [[f"experiment={','.join(sorted(best))}", "compute.seed=1"]])


def regret(arguments: argparse.Namespace) -> None:
    """Prints the table of regrets."""
    table = pd.read_csv(collect(arguments.runs, arguments.out / "runs_dial.csv"))
    print(f"\n{regrets(table)}")


def predict_last(arguments: argparse.Namespace) -> None:
    """Predicts rung 4 by laws of all runs of the study, loss and accuracy. Raises: UserError: it has been run."""
    if any(arguments.runs.glob(f"*scale_r{LAST}*")):
        raise UserError(f"{arguments.runs} already has runs of rung {LAST}, so this would be no prediction")
    _, flops, place = rung_of(LAST)
    found: dict[str, Any] = {"rung": LAST, "flops": flops, **place, "level": LEVEL}
    for metric in METRICS:
        path = arguments.out / f"fit_dial_{metric}.json"
        scaling("fit", "--table", arguments.study, "--where", "state=finished", "--form", "surface", "--y", metric,
                "--json", path)  # fmt: skip
        at = {role: np.array([value]) for role, value in place.items()}
        found[metric] = asdict(load(path).predict(at, level=LEVEL)[0])
        print(f"rung {LAST}: {metric} {found[metric]['value']:.4f}, "
              f"{LEVEL:.0%} of runs [{found[metric]['run_low']:.4f}, {found[metric]['run_high']:.4f}]")  # fmt: skip
    write_complete(arguments.out / "prediction_r4.json", json.dumps(plain(found), indent=1) + "\n")


def train_last(arguments: argparse.Namespace) -> None:
    """Rung 4 with two seeds."""
    sweeps(arguments.runs, arguments.runs / "plan", [[f"scale=r{LAST}", f"compute.seed={seed}"] for seed in (0, 1)])


def test_last(arguments: argparse.Namespace) -> None:
    """Compares rung 4 with its prediction."""
    table = pd.read_csv(collect(arguments.runs, arguments.out / "runs_dial.csv"))
    prediction = json.loads((arguments.out / "prediction_r4.json").read_text(encoding="utf-8"))
    print(f"\n{compared(prediction, table[table.compute == f'scale_r{LAST}'])}")


STEPS = {
    "plan": plan, "train_rungs": train_rungs, "train_grid": train_grid, "train_best": train_best, "regret": regret,
    "predict_last": predict_last, "train_last": train_last, "test_last": test_last,
}  # fmt: skip


def regrets(table: pd.DataFrame) -> str:
    """A table: each rung, its best grid run, and by how much that is better: with the grid's seed and with the other.

    The grid's seed is the one that the best was chosen with, so that its difference is too large; the other is fair.
    """
    lines = [("rung", "its accuracy, seeds 0, 1", "best of the grid", "its accuracy, seeds 0, 1", "regret, seed 0",
              "regret, seed 1", "loss regret, seeds 0, 1")]  # fmt: skip
    for number in RUNGS:
        rung, best = _runs(table, f"scale_r{number}"), _runs(table, _best(table, number).compute)
        points = [best[seed].acc1 - rung[seed].acc1 for seed in (0, 1)]
        losses = [rung[seed].val_loss_1024 - best[seed].val_loss_1024 for seed in (0, 1)]
        lines.append(
            (
                f"r{number}", *(", ".join(f"{100 * rung[seed].acc1:.1f}" for seed in (0, 1)),),
                best[0].compute.removeprefix("dial_"), ", ".join(f"{100 * best[seed].acc1:.1f}" for seed in (0, 1)),
                *(f"{100 * one:+.1f} points" for one in points), ", ".join(f"{one:+.3f}" for one in losses),
            )
        )  # fmt: skip
    return aligned(lines)


def compared(prediction: Mapping[str, Any], rows: pd.DataFrame) -> str:
    """A table: every run of the last rung, each metric, and whether it is inside the predicted interval."""
    lines = [("metric", "seed", "predicted", f"{prediction['level']:.0%} of runs", "observed", "inside")]
    for metric in METRICS:
        one = prediction[metric]
        for seed, seen in zip(rows.seed, rows[metric], strict=True):
            inside = "yes" if one["run_low"] <= seen <= one["run_high"] else "no"
            ends = f"[{one['run_low']:.4f}, {one['run_high']:.4f}]"
            lines.append((metric, str(seed), f"{one['value']:.4f}", ends, f"{seen:.4f}", inside))
    return aligned(lines)


def _best(table: pd.DataFrame, number: int) -> Any:
    """The row with the best accuracy of seed 0 among the grid of a rung and the rung itself."""
    own = table.compute.str.startswith(f"dial_r{number}_") | (table.compute == f"scale_r{number}")
    rows = table[own & (table.seed == 0) & (table.state == "finished")]
    return rows.loc[rows.acc1.idxmax()]


def _runs(table: pd.DataFrame, name: str) -> dict[int, Any]:
    """Seed -> row of the runs of one cell."""
    return {int(row.seed): row for _, row in table[table.compute == name].iterrows()}


if __name__ == "__main__":
    run_command(main)
