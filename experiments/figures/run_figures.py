"""Draws the figures of runs again: loss, zero-shot over samples, predictions like the paper's Figure 21.

    python -m experiments.figures.run_figures runs/latest --images 5

The curves come from the run's records alone; the predictions from its newest checkpoint, on the run's own tasks or on
those named here.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from clip_lightning.config import compose
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError, run_command
from clip_lightning.evaluation.predictions import Prediction, example_indices, predictions
from clip_lightning.evaluation.tasks import ZeroShotTask, build_tasks
from clip_lightning.records import read_records
from clip_lightning.run.figures import write_figures
from clip_lightning.tokenizer import load_tokenizer
from clip_lightning.training.saved_model import config_of_saved, find_checkpoint, load_model, refuse_targets


def main(words: Sequence[str] | None = None) -> int:
    """Draws and prints the paths of the figures; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw the figures of runs again.")
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs")
    parser.add_argument("--tasks", nargs="+", help="registered tasks to predict on instead of the run's own")
    parser.add_argument("--folders", nargs="+", default=[], help="folders in CLIP_benchmark's layout to predict on")
    parser.add_argument("--images", type=int, default=3, help="images of each task; 0: curves only")
    arguments = parser.parse_args(words)
    try:
        for run in arguments.runs:
            if not (run / "metrics.jsonl").is_file():
                raise UserError(f"{run} is not the directory of a run: it has no metrics.jsonl.")
            shown = examples(run, arguments.tasks, arguments.folders, arguments.images) if arguments.images > 0 else []
            for path in write_figures(run / "figures", read_records(run / "metrics.jsonl"), shown):
                print(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def examples(run: Path, names: Sequence[str] | None, folders: Sequence[str], num_images: int) -> list[Prediction]:
    """Predictions of a run's newest checkpoint on `num_images` images of each task.

    Args:
        names: registered tasks; None with no folders: the run's own.
    Raises: UserError for what the user can fix.
    """
    config, tasks = tasks_of(run, names, folders)
    tokenizer = load_tokenizer(config.model.text, run / "tokenizer")
    model = load_model(config, find_checkpoint(run, "last"))
    return [
        row
        for task in tasks
        for row in predictions(
            model,
            tokenizer,
            task,
            example_indices(task, num_images),
            torch.device("cpu"),
            image_size=config.model.vision.image_size,
        )
    ]


def tasks_of(run: Path, names: Sequence[str] | None, folders: Sequence[str]) -> tuple[Config, list[ZeroShotTask]]:
    """The config of a run, and the tasks that are named, or its own. Raises UserError for what the user can fix."""
    config = compose.read(run / "config.yaml")
    refuse_targets(config, [])
    config = config_of_saved(config, run)
    if names is None and not folders:
        names, folders = config.eval.tasks, config.eval.folders
    return config, build_tasks(names or [], folders)


if __name__ == "__main__":
    run_command(main)
