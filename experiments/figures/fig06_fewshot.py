"""Figure 6: zero-shot beside linear probes on 1, 2, 4, 8 and 16 labelled images of a class, averaged over data sets.

    python -m experiments.figures.fig06_fewshot runs/*

The paper printed no numbers of this figure.
"""

import argparse

import pandas as pd

from clip_lightning.errors import run_command
from clip_lightning.formatting import aligned
from clip_lightning.plots.probe import few_shot_curves
from experiments.figures.command import Command, Drawn, measured_by, scores_of_runs
from experiments.figures.scores import averages, describe, select


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """Few-shot probes of runs, and their zero-shot scores on the same data sets where they have them."""
    needed = f"Figure 6 needs few-shot probes; {measured_by(arguments.runs, '--shots 1 2 4 8 16')}"
    scores = scores_of_runs(arguments)
    few = select(scores, "few_shot", needed)
    zero = scores[(scores.method == "zero_shot") & scores.task.isin(few.task)].assign(shots=0)
    parts = [averages(rows).assign(shots=shots) for shots, rows in pd.concat([zero, few]).groupby("shots")]
    means = pd.concat(parts, ignore_index=True)
    rows = [[row.model, f"{row.shots:g}", f"{100 * row.value:.2f}"] for row in means.itertuples()]
    caption = f"Linear probes on few labelled images; star: zero-shot. Mean over {describe(few)}"
    numbers = [aligned([["model", "shots", "mean score (%)"], *rows])]
    return Drawn(few_shot_curves(means, caption), means[["model", "shots", "value", "num_tasks"]], numbers, caption)


COMMAND = Command("fig06_fewshot", "Figure 6: zero-shot beside few-shot probes.", from_runs)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
