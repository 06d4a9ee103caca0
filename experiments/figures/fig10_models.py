"""Figure 10: mean linear-probe score over the compute of a forward pass, the 66 models of Table 10 and any run.

    python -m experiments.figures.fig10_models --paper
    python -m experiments.figures.fig10_models runs/*

The paper printed the scores, not the compute: paper/models.csv has it, and says how it was counted.
"""

import argparse

import pandas as pd

from clip_lightning.errors import run_command
from clip_lightning.formatting import aligned
from clip_lightning.plots.compute import score_over_compute
from experiments.figures import paper_tables
from experiments.figures.command import Command, Drawn, measured_by, scores_of_runs
from experiments.figures.evaluation_lists import KORNBLITH_12, PAPER_27
from experiments.figures.run_tables import with_gflops
from experiments.figures.scores import averages, describe, select


def from_paper(arguments: argparse.Namespace) -> Drawn:
    """Table 10 over both lists of data sets, and by how much the best CLIP model is above the best other one."""
    scores = paper_tables.linear_probe()
    panels, numbers = [], []
    for chosen in (KORNBLITH_12, PAPER_27):
        means = averages(scores[scores.task.isin(chosen.tasks)])
        panels.append((f"{len(chosen.tasks)} data sets", means))
        clip = means.family.str.startswith("CLIP")
        best, other = means[clip].nlargest(1, "value").iloc[0], means[~clip].nlargest(1, "value").iloc[0]
        numbers.append(
            f"{chosen.title}: best CLIP model {best.model} {100 * best.value:.2f}, best other {other.model} "
            f"{100 * other.value:.2f}, difference {100 * (best.value - other.value):+.2f} points"
        )
    caption = (
        f"Linear probe of 66 models (Table 10, Radford et al. 2021). Left: the {KORNBLITH_12.title}. "
        f"Right: {describe(scores)} GFLOPs: printed for CLIP's ResNets, else counted for the architecture."
    )
    return _draw(panels, numbers, caption)


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """Linear-probe scores of runs."""
    needed = f"Figure 10 needs linear-probe scores; {measured_by(arguments.runs, '--probe')}"
    scores = with_gflops(select(scores_of_runs(arguments), "linear_probe", needed), arguments.runs)
    return _draw([(f"{scores.task.nunique()} data sets", averages(scores))], [], f"Linear probe. {describe(scores)}")


def _draw(panels: list[tuple[str, pd.DataFrame]], numbers: list[str], caption: str) -> Drawn:
    table = pd.concat([rows.assign(panel=title) for title, rows in panels], ignore_index=True)
    last = panels[-1][1].sort_values("value", ascending=False)
    rows = [[row.model, f"{row.gflops:.4g}", f"{100 * row.value:.2f}"] for row in last.itertuples()]
    text = aligned([["model", "GFLOPs", f"mean of {panels[-1][0]}"], *rows])
    columns = ["panel", "model", "family", "gflops", "value", "num_tasks"]
    return Drawn(score_over_compute(panels, caption), table[columns], [text, *numbers], caption)


COMMAND = Command("fig10_models", "Figure 10: linear probe over compute.", from_runs, from_paper)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
