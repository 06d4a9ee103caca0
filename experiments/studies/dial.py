"""What the dial loses: rungs 1 to 3 against other models and rates at equal FLOPs; rungs 4 and 5 against predictions.

`python -m experiments.studies.dial` follows the steps of experiments.studies.cpu_grid, whose budgets the rungs have:
`plan --dial conf --budgets ...` made a rung for each from the fit of the three smaller ones. A rung's runs are those of
the study's cell with the same settings, where it has one, and so are the runs of other models with its FLOPs. Run here
is each of the three smaller rungs at half and at twice its rate, and rung 5, predicted by the fits of all four budgets.
What came out: docs/scaling_study.md.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clip_lightning.config import compose
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError, run_command
from clip_lightning.formatting import aligned
from clip_lightning.scaling.costs import of_models
from clip_lightning.scaling.law import load, plain, write_complete
from experiments.studies.commands import collect, run_steps, sweeps
from experiments.studies.cpu_grid import SEEDS

RUNGS = (1, 2, 3)
FITS = {4: "prediction_*.json", 5: "fit_*.json"}  # of the study, which predict a rung: of three budgets, of all four
FACTORS = (0.5, 2.0)  # of a rung's learning rate
LEVEL = 0.9  # of the interval in which the last rung is expected
METRICS = ("val_loss_1024", "acc1")
SAME_FLOPS = 0.03  # runs whose FLOPs differ by less are of one budget: steps are whole


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.dial", description="The regret of the dial.")
    parser.add_argument("--runs", type=Path, default=Path("runs/dial"), metavar="DIR", help="folder of the runs")
    parser.add_argument("--study", type=Path, default=Path("runs/cpu_grid"), metavar="DIR",
                        help="folder of tables and fits of cpu_grid")  # fmt: skip
    return run_steps(parser, STEPS, argv)


def predict(arguments: argparse.Namespace) -> None:
    """The interval of rung 4 by every law of the smaller budgets. Raises: UserError: it has been run."""
    _predict(arguments, 4, arguments.study / "runs.csv")


def predict_next(arguments: argparse.Namespace) -> None:
    """The interval of rung 5 by every law of the four budgets. Raises: UserError: it has been run."""
    _predict(arguments, 5, collect(arguments.runs, arguments.out / "runs_dial.csv"))


def _predict(arguments: argparse.Namespace, number: int, runs: Path) -> None:
    rung = rung_of(number)
    if len(_of_budget(pd.read_csv(runs), rung["flops"])):
        raise UserError(f"{runs} already has runs of rung {number}; this would be no prediction")
    place = {role: np.array([rung[role]]) for role in ("n", "d")}
    found: dict[str, Any] = {**rung, "level": LEVEL, "predictions": {}}
    for file in sorted(arguments.study.glob(FITS[number])):
        law = load(file)
        one = law.predict(place, level=LEVEL)[0]
        found["predictions"][file.stem] = {"metric": law.columns["y"], **asdict(one)}
        print(f"{file.stem}: {law.columns['y']} {one.value:.4f}, {LEVEL:.0%} of runs [{one.run_low:.4f}, "
              f"{one.run_high:.4f}]")  # fmt: skip
    write_complete(arguments.out / f"prediction_r{number}.json", json.dumps(plain(found), indent=1) + "\n")


def train(arguments: argparse.Namespace) -> None:
    """Each of the three smaller rungs at other rates, and as it is where the study has no such cell; a sweep a seed."""
    study = pd.read_csv(arguments.study / "runs.csv")
    for number in RUNGS:
        rung = rung_of(number)
        factors = FACTORS if len(_of_rung(study, rung)) else (*FACTORS, 1.0)
        rates = ",".join(f"{rung['learning_rate'] * factor:.4g}" for factor in factors)
        words = [f"scale=r{number}", f"compute.learning_rate={rates}"]
        sweeps(arguments.runs, Path("conf"), [[*words, f"compute.seed={seed}"] for seed in SEEDS])


def train_next(arguments: argparse.Namespace) -> None:
    """Rung 5."""
    sweeps(arguments.runs, Path("conf"), [["scale=r5", f"compute.seed={seed}"] for seed in SEEDS])


def regret(arguments: argparse.Namespace) -> None:
    """Prints the table of regrets."""
    both = _all_runs(arguments)
    for number in RUNGS:
        print(f"\n{regrets(number, rung_of(number), both)}")


def test(arguments: argparse.Namespace) -> None:
    """Compares rungs 4 and 5 with their predictions."""
    both = _all_runs(arguments)
    for number in FITS:
        prediction = json.loads((arguments.out / f"prediction_r{number}.json").read_text(encoding="utf-8"))
        print(f"\nrung {number}\n{compared(prediction, _of_rung(both, prediction))}")


STEPS = {
    "predict": predict, "train": train, "regret": regret, "predict_next": predict_next, "train_next": train_next,
    "test": test,
}  # fmt: skip


def rung_of(number: int) -> dict[str, Any]:
    """A rung of conf/scale: model, n (FLOPs of a training sample), d (samples), flops, learning_rate."""
    config: Config = compose.load("train", [f"scale=r{number}", "data=scenes"])
    cost = of_models([config.model.name])[0]
    n, d = cost.per_sample(config.compute.global_batch), float(config.compute.duration.split()[0])
    return {"model": cost.name, "n": n, "d": d, "flops": n * d, "learning_rate": config.compute.learning_rate}


def regrets(number: int, rung: Mapping[str, Any], table: pd.DataFrame) -> str:
    """All cells of a rung's FLOPs, the best first by mean accuracy, and what the rung loses to the best.

    The best of several noisy cells is partly luck. So the second regret chooses the best by one seed and measures it by
    the other, both ways, and takes the mean.
    """
    cells = _of_budget(table, rung["flops"]).groupby(["model", "learning_rate"])
    rows = []
    for (model, rate), runs in cells:
        first, second = (runs[runs.seed == seed].iloc[0] for seed in SEEDS)
        own = model == rung["model"] and np.isclose(rate, rung["learning_rate"], rtol=1e-3)
        rows.append({"own": own, "model": model, "rate": rate, "acc": np.array([first.acc1, second.acc1]),
                     "loss": np.array([first.val_loss_1024, second.val_loss_1024])})  # fmt: skip
    dial = next(row for row in rows if row["own"])
    rows.sort(key=lambda row: -row["acc"].mean())
    lines = [("model", "rate", "accuracy", "of seeds", "loss", "of seeds", "")]
    lines += [
        (row["model"], f"{row['rate']:.3g}", f"{100 * row['acc'].mean():.1f}", _both(100 * row["acc"], 1),
         f"{row['loss'].mean():.3f}", _both(row["loss"], 3), "the rung" if row["own"] else "")
        for row in rows
    ]  # fmt: skip
    points = 100 * max(row["acc"].mean() - dial["acc"].mean() for row in rows)
    losses = max(dial["loss"].mean() - row["loss"].mean() for row in rows)
    crossed = 100 * np.mean(
        [max(rows, key=lambda row: row["acc"][k])["acc"][1 - k] - dial["acc"][1 - k] for k in (0, 1)]
    )
    return (
        f"rung {number}\n{aligned(lines)}\nregret {points:.1f} points of mean accuracy over {len(rows)} cells; "
        f"{crossed:+.1f} where the best is chosen by the other seed; {losses:.3f} in loss; the rung's two seeds differ "
        f"by {100 * abs(np.diff(dial['acc'])[0]):.1f} points"
    )


def compared(prediction: Mapping[str, Any], rows: pd.DataFrame) -> str:
    """A table: every run of a rung by every law, and whether it is inside the predicted interval."""
    lines = [("law", "metric", "seed", "predicted", f"{prediction['level']:.0%} of runs", "observed", "inside")]
    for name, one in prediction["predictions"].items():
        for row in rows.sort_values("seed").to_dict("records"):
            seen = row[one["metric"]]
            inside = "yes" if one["run_low"] <= seen <= one["run_high"] else "no"
            ends = f"[{one['run_low']:.4f}, {one['run_high']:.4f}]"
            lines.append((name, one["metric"], str(row["seed"]), f"{one['value']:.4f}", ends, f"{seen:.4f}", inside))
    return aligned(lines)


def _all_runs(arguments: argparse.Namespace) -> pd.DataFrame:
    own = pd.read_csv(collect(arguments.runs, arguments.out / "runs_dial.csv"))
    return pd.concat([pd.read_csv(arguments.study / "runs.csv"), own], ignore_index=True)


def _both(values: np.ndarray, digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def _of_budget(table: pd.DataFrame, flops: float) -> pd.DataFrame:
    """The finished runs with so many FLOPs."""
    return table[(table.state == "finished") & (abs(table.model_flops / flops - 1) < SAME_FLOPS)]


def _of_rung(table: pd.DataFrame, rung: Mapping[str, Any]) -> pd.DataFrame:
    found = _of_budget(table, rung["flops"])
    return found[(found.model == rung["model"]) & np.isclose(found.learning_rate, rung["learning_rate"], rtol=1e-3)]


if __name__ == "__main__":
    run_command(main)
