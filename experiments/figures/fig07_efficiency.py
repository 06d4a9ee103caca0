"""Figure 7: how many labelled images of a class a linear probe needs to match zero-shot on the same features.

    python -m experiments.figures.fig07_efficiency --paper
    python -m experiments.figures.fig07_efficiency RUN

From a run's probes on 1, 2, 4, ... images of a class: log-linear interpolation, as in the paper's section 3.1.4.
"""

import argparse

import numpy as np
import pandas as pd

from clip_lightning.errors import UserError, run_command
from clip_lightning.evaluation.probe import shots_to_match
from clip_lightning.formatting import aligned
from clip_lightning.plots.bars import shots_bars
from experiments.figures import paper_tables
from experiments.figures.command import Command, Drawn, measured_by, scores_of_one_run
from experiments.figures.scores import describe, refuse_mixtures, select


def from_paper(arguments: argparse.Namespace) -> Drawn:
    """The printed numbers of Figure 7."""
    rows = paper_tables.read("figure7").rename(columns={"dataset": "task"})
    sizes = [paper_tables.sizes()[task] for task in rows.task]
    caption = (
        "Zero-shot CLIP ViT-L/14-336px, as printed in Figure 7 of Radford et al. 2021: "
        f"{len(rows)} of the 27 data sets of Table 9, without VOC2007; each by its metric of Table 9; split: test; "
        f"n = {min(sizes):,} to {max(sizes):,} images."
    )
    return _draw(rows, caption)


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """The zero-shot score of a run against its few-shot probes."""
    scores = scores_of_one_run(arguments, "Figure 7")
    needed = f"Figure 7 needs few-shot probes; {measured_by(arguments.runs, '--shots 1 2 4 8 16')}"
    few = select(scores, "few_shot", needed)
    zero = select(scores, "zero_shot", "Figure 7 needs zero-shot scores; make them: python evaluate.py run=DIR")
    refuse_mixtures(zero)
    rows = []
    for task, of_task in few.groupby("task", sort=False):
        of_task = of_task.groupby("shots").value.mean()
        if len(of_task) < 2:
            raise UserError(f"{task} has probes on one number of images only, so nothing can be interpolated; {needed}")
        target = zero[zero.task == task].value
        if len(target):
            rows.append(
                (task, shots_to_match(of_task.index.to_numpy(float), of_task.to_numpy(), float(target.iloc[0])))
            )
    zero = zero[zero.task.isin([task for task, _ in rows])]
    caption = f"Shots of a linear probe that match zero-shot {zero.model.iloc[0]}. {describe(zero)}"
    return _draw(pd.DataFrame(rows, columns=["task", "shots"]), caption)


def _draw(rows: pd.DataFrame, caption: str) -> Drawn:
    finite = rows.shots[np.isfinite(rows.shots)]
    if finite.empty:
        raise UserError("no number of labelled images matched zero-shot on any data set; measure more with --shots.")
    mean, median = float(finite.mean()), float(finite.median())
    numbers = [
        aligned([["data set", "shots"], *([row.task, f"{row.shots:.3g}"] for row in rows.itertuples())]),
        f"mean {mean:.1f}, median {median:.1f} labelled images of a class, over {len(finite)} data sets",
    ]
    return Drawn(shots_bars(rows, mean, median, caption), rows, numbers, caption)


COMMAND = Command("fig07_efficiency", "Figure 7: shots needed to match zero-shot.", from_runs, from_paper)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
