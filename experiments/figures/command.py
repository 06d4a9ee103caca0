"""What all commands that draw a figure share: arguments, the numbers on the screen, and the files.

    python -m experiments.figures.fig09_scaling runs/*            from runs
    python -m experiments.figures.fig09_scaling --paper           from the paper's printed numbers

A figure is written as PNG, PDF and CSV (fractions), and its caption as text.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from clip_lightning.errors import UserError
from clip_lightning.formatting import listed
from clip_lightning.plots.style import PAGE
from experiments.figures.evaluation_lists import metric_of
from experiments.figures.run_tables import read_runs

DPI, LARGE_DPI = 200, 110  # of the PNG; the second one of figures that are wider than a page


@dataclass(frozen=True)
class Drawn:
    """A figure with what belongs to it.

    Attributes:
        figure: None for a table, which has text instead.
        table: what is drawn, as it goes to the CSV.
        numbers: lines printed beside the figure.
        caption: what was measured: evaluation list, metric, split and n.
        texts: further files, extension -> content.
    """

    figure: Figure | None
    table: pd.DataFrame
    numbers: Sequence[str]
    caption: str
    texts: dict[str, str] = field(default_factory=dict)


Draw = Callable[[argparse.Namespace], Drawn]


@dataclass(frozen=True)
class Command:
    """One figure as a command.

    Attributes:
        name: of the module and of the files.
        title: one line for --help.
        runs: draws from `arguments.runs`.
        paper: draws from the printed numbers; None where the paper printed none.
        options: adds the figure's own arguments.
        without_runs: whether the arguments name something else to draw from.
    """

    name: str
    title: str
    runs: Draw
    paper: Draw | None = None
    options: Callable[[argparse.ArgumentParser], None] | None = None
    without_runs: Callable[[argparse.Namespace], bool] = lambda arguments: False

    def parser(self) -> argparse.ArgumentParser:
        """The arguments of this command."""
        parser = argparse.ArgumentParser(prog=f"python -m experiments.figures.{self.name}", description=self.title)
        parser.add_argument("runs", nargs="*", type=Path, help="directories of runs")
        if self.paper:
            parser.add_argument("--paper", action="store_true", help="draw the paper's printed numbers instead of runs")
        parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these data sets")
        parser.add_argument("--metric", help="one metric of records for all data sets (default: the paper's for each)")
        parser.add_argument("--prompts", help="only measurements with this set of prompts, as in the records")
        parser.add_argument("--weights", default="", help="ema: the average of the weights instead of the weights")
        parser.add_argument("--out", type=Path, default=Path("runs/figures"), help="folder (default: runs/figures)")
        if self.options:
            self.options(parser)
        return parser

    def draw(self, arguments: argparse.Namespace) -> Drawn:
        """The figure that the arguments describe. Raises UserError."""
        if self.paper and arguments.paper:
            if arguments.runs:
                raise UserError("--paper draws the paper's printed numbers and takes no runs; leave one of them out.")
            return self.paper(arguments)
        if not arguments.runs and not self.without_runs(arguments):
            hint = " or --paper" if self.paper else ""
            raise UserError(f"there is nothing to draw: name directories of runs{hint}.")
        return self.runs(arguments)

    def main(self, words: Sequence[str] | None = None) -> int:
        """Draws, prints the numbers, writes the files and prints their paths; returns the exit code."""
        arguments = self.parser().parse_args(words)
        drawn = self.draw(arguments)
        print("\n".join([*drawn.numbers, drawn.caption, *map(str, write(self.name, drawn, arguments.out))]))
        return 0


def scores_of_runs(arguments: argparse.Namespace) -> pd.DataFrame:
    """The tidy table of the runs that the arguments name, of their data sets, metric and prompts.

    Raises: UserError where nothing is left, or a data set was not measured by its metric.
    """
    found = read_runs(arguments.runs, arguments.weights)
    if arguments.tasks:
        found = _keep(found, "task", arguments.tasks, "--tasks")
    if arguments.prompts:
        zero_shot = found.method == "zero_shot"  # other methods have no prompts
        found = pd.concat([_keep(found[zero_shot], "prompts", [arguments.prompts], "--prompts"), found[~zero_shot]])
    if arguments.metric:
        return _keep(found, "metric", [arguments.metric], "--metric")
    own = found[found.metric == found.task.map(metric_of)]
    if lacking := [task for task in dict.fromkeys(found.task) if task not in set(own.task)]:
        raise UserError(
            *(
                f"{task} is measured by {metric_of(task)}, and the runs have only "
                f"{listed(dict.fromkeys(found[found.task == task].metric))}; write --metric NAME to use one of these."
                for task in lacking
            )
        )
    return own


def scores_of_one_run(arguments: argparse.Namespace, figure: str) -> pd.DataFrame:
    """The same of a figure, such as "Figure 7", that shows one run. Raises UserError for several."""
    scores = scores_of_runs(arguments)
    if (num := scores.model.nunique()) > 1:
        raise UserError(f"{figure} is of one run, and there are {num}; name one.")
    return scores


def _keep(scores: pd.DataFrame, column: str, wanted: Sequence[str], option: str) -> pd.DataFrame:
    kept = scores[scores[column].isin(wanted)]
    if absent := [name for name in wanted if name not in set(kept[column])]:
        raise UserError(
            f"{option} {listed(absent)}: the runs have no such measurement; they have "
            f"{listed(dict.fromkeys(scores[column]))}."
        )
    return kept


def measured_by(runs: Sequence[Path], option: str) -> str:
    """The end of a sentence about missing records: the command that makes them."""
    return f"make them: python -m experiments.figures.measure {' '.join(map(str, runs))} {option}"


def write(name: str, drawn: Drawn, folder: Path) -> list[Path]:
    """Writes the files of a figure and returns their paths; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    if drawn.figure is not None:
        dpi = DPI if drawn.figure.get_figwidth() <= PAGE else LARGE_DPI
        for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
            paths.append(folder / f"{name}{suffix}")
            drawn.figure.savefig(paths[-1], metadata=metadata, dpi=dpi)
    paths.append(folder / f"{name}.csv")
    drawn.table.dropna(axis=1, how="all").to_csv(paths[-1], index=False, float_format="%.6g")
    for suffix, text in {**drawn.texts, ".txt": "\n".join([*drawn.numbers, drawn.caption, ""])}.items():
        paths.append(folder / f"{name}{suffix}")
        paths[-1].write_text(text, encoding="utf-8")
    return paths
