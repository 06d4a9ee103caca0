"""Figure 21: for each data set one random image with its five most probable prompts, the correct one in green.

    python -m experiments.figures.fig21_predictions RUN --folders DIR ...
    python -m experiments.figures.fig21_predictions --paper

The image of a data set is the same for every model. `--paper` draws the text of the paper's 36 panels; it carries the
bar of the correct class alone.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from clip_lightning.errors import UserError, run_command
from clip_lightning.formatting import listed
from clip_lightning.plots.predictions import NUM_BARS, Prediction, prediction_panels
from experiments.figures import paper_tables
from experiments.figures.command import Command, Drawn


@dataclass(frozen=True)
class PrintedPanel:
    """A panel of the paper's figure as far as its text is carried; see `plots.predictions.Prediction`."""

    task: str
    label: str
    rank: int
    probability: float
    num_classes: int
    prompts: list[str]
    probabilities: list[float]
    correct: int | None
    image: np.ndarray | None = None


def options(parser: argparse.ArgumentParser) -> None:
    """The arguments of this figure."""
    parser.add_argument("--folders", nargs="+", default=[], metavar="DIR", help="data sets in CLIP_benchmark's layout")
    parser.add_argument("--images", type=int, default=1, help="random images of each data set (default: 1)")


def from_paper(arguments: argparse.Namespace) -> Drawn:
    """The text of the paper's 36 panels."""
    panels = [_panel(row) for row in paper_tables.read("figure21").itertuples()]
    return _draw(
        panels, "Text of the panels of Figure 21, Radford et al. 2021 (CLIP ViT-L/14-336px)", "paper, the first"
    )


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """Predictions of a run's newest checkpoint."""
    if len(arguments.runs) > 1:
        raise UserError(f"Figure 21 is of one run, and there are {len(arguments.runs)}; name one.")
    if arguments.images < 1:
        raise UserError(f"--images={arguments.images} must be at least 1, the number of images of each data set.")
    from experiments.figures.run_figures import examples, tasks_of  # needs torch

    (run,) = arguments.runs
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not the directory of a run: it has no config.yaml.")
    panels = examples(run, arguments.tasks, arguments.folders, arguments.images)
    _, tasks = tasks_of(run, arguments.tasks, arguments.folders)
    splits = listed(dict.fromkeys(task.split for task in tasks))
    return _draw(panels, f"Predictions of {run.resolve().name}", "the first of each data set", splits)


def _draw(panels: list[Prediction], origin: str, prompts: str, splits: str = "test") -> Drawn:
    tasks = dict.fromkeys(row.task for row in panels)
    best = sum(row.rank == 1 for row in panels)
    caption = (
        f"{origin}: {len(tasks)} data sets, n = {len(panels)} images, chosen at random; softmax over all classes; "
        f"split: {splits}; prompts: {prompts}. Green: the correct class, orange: others."
    )
    columns = ["task", "label", "rank", "num_classes", "probability"]
    rows = pd.DataFrame([{name: getattr(row, name) for name in columns} for row in panels])
    numbers = [
        f"{row.task}: {row.label}, rank {row.rank}/{row.num_classes}, probability {100 * row.probability:.2f} %"
        for row in panels
    ]
    numbers.append(f"the correct class is the most probable of {best} of {len(panels)} images")
    return Drawn(prediction_panels(panels, caption), rows, numbers, caption)


def _panel(row: Any) -> PrintedPanel:
    """One row of figure21.csv; its prompt is at its rank, and the bars above it, which are not carried, are empty."""
    shown = row.rank <= NUM_BARS
    above = row.rank - 1 if shown else 0
    probability = row.probability / 100
    return PrintedPanel(
        task=row.dataset,
        label=str(row.label),
        rank=row.rank,
        probability=probability,
        num_classes=row.num_classes,
        prompts=[""] * above + [row.prompt] * shown,
        probabilities=[0.0] * above + [probability] * shown,
        correct=above if shown else None,
    )


COMMAND = Command(
    "fig21_predictions", "Figure 21: predictions on one image of each data set.", from_runs, from_paper, options
)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
