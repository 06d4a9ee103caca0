"""Figure 5: zero-shot minus a fully supervised linear probe on the features of an ImageNet ResNet-50.

    python -m experiments.figures.fig05_probe --paper
    python -m experiments.figures.fig05_probe RUN RUN_OF_RESNET50

From runs: zero-shot scores of the first, linear-probe scores of the second, on the data sets that both have.
"""

import argparse

import pandas as pd

from clip_lightning.errors import UserError, run_command
from clip_lightning.plots.bars import difference_bars
from experiments.figures import paper_tables
from experiments.figures.command import Command, Drawn, measured_by, scores_of_runs
from experiments.figures.differences import differences, lines, misprints, wins
from experiments.figures.scores import describe, one_model, select


def from_paper(arguments: argparse.Namespace) -> Drawn:
    """Tables 11 and 10, beside the differences that Figure 5 prints."""
    zero_shot, probe = paper_tables.zero_shot(), paper_tables.linear_probe()
    first, second = one_model(zero_shot, paper_tables.CLIP), one_model(probe, paper_tables.RESNET50)
    rows = differences(first, second)
    wrong = misprints(rows, paper_tables.read("figure5"))
    numbers = lines(rows, "zero-shot CLIP L/14-336", "linear probe on ResNet-50")
    numbers += [f"misprinted in the paper, {len(wrong)} of {len(rows)} differences:", *(line for _, line in wrong)]
    origin = (
        "Zero-shot CLIP ViT-L/14-336px (Table 11) minus a linear probe on ResNet-50 (Table 10; Radford et al. 2021). "
    )
    return _draw(rows, numbers, origin + describe(first))


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """Zero-shot of the first run minus the linear probe of the second; of one run, its own probe."""
    scores = scores_of_runs(arguments)
    runs = list(dict.fromkeys(scores.model))
    if len(runs) > 2:
        raise UserError(f"Figure 5 compares two runs, and there are {len(runs)}; name a run and the run of the probe.")
    needed = "Figure 5 needs zero-shot scores; make them: python evaluate.py run=DIR eval.tasks=[NAME,...]"
    first = one_model(select(scores, "zero_shot", needed), runs[0])
    needed = f"Figure 5 needs linear-probe scores; {measured_by(arguments.runs[-1:], '--probe')}"
    second = one_model(select(scores, "linear_probe", needed), runs[-1])
    both = set(first.task) & set(second.task)
    first, second = first[first.task.isin(both)], second[second.task.isin(both)]
    rows = differences(first, second)
    numbers = lines(rows, f"zero-shot {runs[0]}", f"linear probe on {runs[-1]}")
    return _draw(rows, numbers, f"Zero-shot {runs[0]} minus a linear probe on {runs[-1]}. {describe(first)}")


def _draw(rows: pd.DataFrame, numbers: list[str], caption: str) -> Drawn:
    title = f"zero-shot is better on {wins(rows)}"
    return Drawn(difference_bars([(title, rows)], "difference (points)", caption), rows, numbers, caption)


COMMAND = Command("fig05_probe", "Figure 5: zero-shot minus a supervised linear probe.", from_runs, from_paper)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
