"""Figure 4: bare class names against prompts and ensembles, averaged over data sets, and the compute of the same gain.

    python -m experiments.figures.fig04_prompts runs/*

The compute equivalent is how many times the compute lowers the mean error as prompts do, by the fit of Figure 9 on the
same runs with the better prompts. The paper printed no numbers of this figure.
"""

import argparse

import pandas as pd

from clip_lightning.errors import UserError, run_command
from clip_lightning.formatting import aligned, listed
from clip_lightning.plots.compute import prompt_gain
from experiments.figures.command import Command, Drawn, measured_by, scores_of_runs
from experiments.figures.fig09_scaling import fit_error
from experiments.figures.run_tables import with_gflops
from experiments.figures.scores import averages, describe, select


def options(parser: argparse.ArgumentParser) -> None:
    """The arguments of this figure."""
    parser.add_argument("--baseline", default="contextless", metavar="PROMPTS", help="default: contextless")
    parser.add_argument("--better", metavar="PROMPTS", help="default: the set of prompts that is best on average")


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """Zero-shot scores of runs with two or more sets of prompts."""
    made = measured_by(arguments.runs, "--prompts")
    needed = f"Figure 4 needs zero-shot scores with bare class names and with prompts; {made}"
    scores = select(scores_of_runs(arguments), "zero_shot", needed)
    found = list(dict.fromkeys(scores.prompts))
    if arguments.baseline not in found or len(found) < 2:
        raise UserError(f"the runs have only prompts={listed(found)}. {needed}")
    if arguments.better is not None and arguments.better not in found:
        raise UserError(f"--better {arguments.better}: the runs have only prompts={listed(found)}.")
    both = set.intersection(*(set(rows.task) for _, rows in scores.groupby("prompts")))
    scores = scores[scores.task.isin(both)]
    if scores.empty:
        raise UserError(f"no data set was measured with all of the prompts {listed(found)}. {needed}")
    scores = with_gflops(scores, arguments.runs)
    parts = [averages(rows).assign(prompts=kind) for kind, rows in scores.groupby("prompts", sort=False)]
    means = pd.concat(parts, ignore_index=True)
    mean_of = means.groupby("prompts").value.mean()
    better = arguments.better or mean_of.drop(arguments.baseline).idxmax()
    gain = float(mean_of[better] - mean_of[arguments.baseline])
    slope, *_ = fit_error(means[means.prompts == better].assign(error=lambda rows: 1 - rows.value))
    factor = compute_equivalent(1 - float(mean_of[arguments.baseline]), 1 - float(mean_of[better]), slope)
    rows = [[row.prompts, row.model, f"{row.gflops:.4g}", f"{100 * row.value:.2f}"] for row in means.itertuples()]
    same = "no compute gives this gain, since error does not fall with compute here"
    if factor is not None:
        same = f"{factor:.3g} times the compute gives the same gain (slope of log error over log compute: {slope:.4f})"
    numbers = [
        aligned([["prompts", "model", "GFLOPs", "mean score (%)"], *rows]),
        f"{better} minus {arguments.baseline}: {100 * gain:+.2f} points on average over {means.model.nunique()} models",
        same,
    ]
    caption = f"Zero-shot with sets of prompts, mean over {describe(scores)}"
    drawn = prompt_gain(means, arguments.baseline, better, factor, caption)
    return Drawn(drawn, means[["prompts", "model", "gflops", "value", "num_tasks"]], numbers, caption)


def compute_equivalent(error_before: float, error_after: float, slope: float) -> float | None:
    """How many times the compute lowers the error from one value to the other.

    Args:
        slope: of log10(error) over log10(compute).
    Returns:
        None where the error does not fall with compute.
    """
    return None if slope >= 0 else float((error_after / error_before) ** (1 / slope))


COMMAND = Command("fig04_prompts", "Figure 4: class names alone against prompts.", from_runs, options=options)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
