"""Figure 9: mean zero-shot error over the compute of the image tower, with a line by least squares on log-log axes.

    python -m experiments.figures.fig09_scaling --paper
    python -m experiments.figures.fig09_scaling runs/*

The paper averages 39 evaluations that it does not list; `--paper` averages the 27 of Table 11, over the five ResNets.
"""

import argparse

import numpy as np
import pandas as pd
from scipy.stats import linregress

from clip_lightning.errors import UserError, run_command
from clip_lightning.evaluation.robustness import interval, resample_lines
from clip_lightning.formatting import aligned, listed
from clip_lightning.plots.compute import error_over_compute
from experiments.figures import paper_tables
from experiments.figures.command import Command, Drawn, scores_of_runs
from experiments.figures.run_tables import with_gflops
from experiments.figures.scores import averages, describe, select


def from_paper(arguments: argparse.Namespace) -> Drawn:
    """The five ResNets of Table 11."""
    scores = paper_tables.zero_shot()
    return _draw(scores[scores.family == "CLIP-ResNet"], "ResNets of Table 11 (Radford et al. 2021). ")


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """Zero-shot scores of runs."""
    needed = "Figure 9 needs zero-shot scores; make them: python evaluate.py run=DIR eval.tasks=[NAME,...]"
    scores = select(scores_of_runs(arguments), "zero_shot", needed)
    averages(scores)  # what cannot be averaged is refused before torch counts operations
    return _draw(with_gflops(scores, arguments.runs), "")


def fit_error(means: pd.DataFrame) -> tuple[float, float, float, tuple[float, float]]:
    """Slope, intercept and r of log10(error in percent) over log10(gflops), and the 95 % interval of the slope.

    The interval is of a bootstrap over models. Raises UserError for fewer than three models, or one without errors.
    """
    if (means.error <= 0).any():
        perfect = means.model[means.error <= 0].to_list()
        raise UserError(
            f"{listed(perfect)} has no errors on average, and the fit is of the logarithm of the error; leave it out, "
            "or name data sets on which it has some with --tasks."
        )
    x, y = np.log10(means.gflops.to_numpy(float)), np.log10(100 * means.error.to_numpy(float))
    low, high = interval(resample_lines(x, y)[:, 0])
    line = linregress(x, y)
    return float(line.slope), float(line.intercept), float(line.rvalue), (float(low), float(high))


def _draw(scores: pd.DataFrame, origin: str) -> Drawn:
    means = averages(scores).assign(error=lambda rows: 1 - rows.value).sort_values("gflops")
    slope, intercept, r, (low, high) = fit_error(means)
    each = scores.assign(error=1 - scores.value)[["model", "task", "metric", "split", "n", "gflops", "error"]]
    caption = (
        f"{origin}Mean over {describe(scores)} Dashed: least squares through {len(means)} models; faint: each data set."
    )
    rows = [["model", "GFLOPs", "mean error (%)"]]
    rows += [[row.model, f"{row.gflops:.4g}", f"{100 * row.error:.2f}"] for row in means.itertuples()]
    numbers = [
        aligned(rows),
        f"log10(error in %) over log10(GFLOPs): slope {slope:.4f}, intercept {intercept:.4f}, r {r:.3f}",
        f"95 % interval of the slope: {low:.4f} to {high:.4f} (bootstrap over models)",
    ]
    drawn = error_over_compute(means, each, slope, intercept - 2, caption)
    table = pd.concat([means.assign(task="mean")[["model", "task", "gflops", "error"]], each], ignore_index=True)
    return Drawn(drawn, table, numbers, caption)


COMMAND = Command("fig09_scaling", "Figure 9: zero-shot error over compute.", from_runs, from_paper)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
