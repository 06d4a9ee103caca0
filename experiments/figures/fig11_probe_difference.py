"""Figure 11: difference of the linear probes of two models, data set by data set.

python -m experiments.figures.fig11_probe_difference --paper
python -m experiments.figures.fig11_probe_difference RUN OTHER_RUN
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
    """Table 10: CLIP L/14-336 minus the best other model, beside the differences that Figure 11 prints."""
    scores = paper_tables.linear_probe()
    first = one_model(scores, f"CLIP-{paper_tables.CLIP}")
    rows = differences(first, one_model(scores, paper_tables.NOISY_STUDENT))
    wrong = misprints(rows, paper_tables.read("figure11"))
    numbers = lines(rows, "CLIP L/14-336", "Noisy Student EfficientNet-L2 (800 pixels)")
    numbers += [line for _, line in wrong] or [
        f"all {len(rows)} differences that the paper's figure prints equal the table's within 0.1 points"
    ]
    caption = (
        "Linear probes: CLIP ViT-L/14-336px minus Noisy Student EfficientNet-L2 at 800 pixels (Table 10; Radford et "
        f"al. 2021). {describe(first)}"
    )
    return _draw(rows, numbers, caption)


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """The linear probe of the first run minus that of the second."""
    needed = f"Figure 11 needs linear-probe scores; {measured_by(arguments.runs, '--probe')}"
    scores = select(scores_of_runs(arguments), "linear_probe", needed)
    models = list(dict.fromkeys(scores.model))
    if len(models) != 2:
        raise UserError(f"Figure 11 compares the probes of two runs, not of {len(models)}; name two runs.")
    first, second = (one_model(scores, model) for model in models)
    rows = differences(first, second)
    return _draw(rows, lines(rows, *models), f"Linear probes: {models[0]} minus {models[1]}. {describe(first)}")


def _draw(rows: pd.DataFrame, numbers: list[str], caption: str) -> Drawn:
    drawn = difference_bars([(f"first is better on {wins(rows)}", rows)], "difference (points)", caption)
    return Drawn(drawn, rows, numbers, caption)


COMMAND = Command("fig11_probe_difference", "Figure 11: difference of two linear probes.", from_runs, from_paper)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
