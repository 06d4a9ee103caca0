"""Tables 9, 10, 11 and 16 in the paper's form, as text, CSV and LaTeX.

    python -m experiments.figures.appendix_tables --paper
    python -m experiments.figures.appendix_tables runs/* [--reference TASK --shifts TASK ...]

Table 9: the data sets. 10: linear probes; bold (a star in text) are scores within the 99.5 % Clopper-Pearson interval
of the best of the column. 11: zero-shot. 16: natural distribution shifts.
"""

import argparse

import pandas as pd
from scipy.stats import binomtest

from clip_lightning.errors import UserError, run_command
from clip_lightning.formatting import aligned, percent
from experiments.figures import paper_tables
from experiments.figures.command import Command, Drawn, scores_of_runs
from experiments.figures.evaluation_lists import METRIC_NAMES
from experiments.figures.scores import describe, refuse_mixtures

_TITLES = {
    "9": "Table 9: data sets",
    "10": "Table 10: linear probes (%); bold: within the 99.5 % interval of the best",
    "11": "Table 11: zero-shot (%)",
    "16": "Table 16: natural distribution shifts, top-1 (%)",
}


def options(parser: argparse.ArgumentParser) -> None:
    """The arguments of the tables."""
    parser.add_argument("--reference", metavar="TASK", help="of runs, Table 16: the data set without the shift")
    parser.add_argument("--shifts", nargs="+", metavar="TASK", help="of runs, Table 16: the shifted data sets")


def from_paper(arguments: argparse.Namespace) -> Drawn:
    """The four tables as printed."""
    datasets = paper_tables.read("table9").drop(columns="note")
    probe, zero_shot = paper_tables.linear_probe(), paper_tables.zero_shot()
    printed = paper_tables.read("table16")
    shifts = printed.set_index("model").map(lambda value: f"{value:.1f}").reset_index()
    tables = {
        "9": datasets.astype(str),
        "10": wide(probe, bold=True),
        "11": wide(zero_shot),
        "16": shifts,
    }
    scores = pd.concat([probe, zero_shot, paper_tables.shifts()])
    return _drawn(tables, scores, f"As printed by Radford et al. 2021. Tables 10 and 11: {describe(zero_shot)}")


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """The tables for which the runs have records."""
    scores = scores_of_runs(arguments)
    last = scores.drop_duplicates("task")
    tables = {
        "9": pd.DataFrame(
            {
                "dataset": last.task,
                "test": last.n.map(lambda n: "" if pd.isna(n) else f"{int(n)}"),
                "split": last.split,
                "metric": last.metric.map(METRIC_NAMES),
                "chance": last.chance.map(lambda value: "" if pd.isna(value) else percent(value)),
            }
        )
    }
    for number, method in (("10", "linear_probe"), ("11", "zero_shot")):
        rows = scores[scores.method == method]
        if len(rows):
            tables[number] = wide(rows, bold=number == "10")
    if arguments.shifts:
        if not arguments.reference:
            raise UserError("--shifts needs --reference TASK, the data set without the shift.")
        chosen = [arguments.reference, *arguments.shifts]
        rows = scores[scores.task.isin(chosen) & (scores.method == "zero_shot")]
        if missing := [task for task in chosen if task not in set(rows.task)]:
            raise UserError(
                f"Table 16 needs zero-shot scores on {', '.join(missing)}; make them: python evaluate.py run=DIR"
            )
        tables["16"] = wide(rows)[["model", *chosen]]
    return _drawn(tables, scores, describe(scores[scores.method == scores.method.iloc[0]]))


def wide(scores: pd.DataFrame, bold: bool = False) -> pd.DataFrame:
    """One row per model, one column per data set, percent with one digit; bold ones end with a star.

    Raises: UserError where a cell has two measurements, such as those with two sets of prompts.
    """
    if scores.duplicated(["model", "task"]).any():
        refuse_mixtures(scores)
    values = scores.pivot_table("value", "model", "task", sort=False)
    text = values.map(lambda value: "" if pd.isna(value) else f"{100 * value:.1f}")
    if bold:
        sizes = scores.drop_duplicates("task").set_index("task").n
        for task in values:
            text[task] += values[task].ge(least_of_best(values[task].max(), sizes[task])).map({True: "*", False: ""})
    return text.reset_index()


def least_of_best(best: float, n: float | None, confidence: float = 0.995) -> float:
    """The lower end of the Clopper-Pearson interval of the best score on n images; the score itself without n."""
    if n is None or pd.isna(n):
        return best
    return float(binomtest(round(best * n), int(n)).proportion_ci(confidence, method="exact").low)


def latex(table: pd.DataFrame, title: str) -> str:
    """The table in LaTeX (booktabs), names of data sets turned, starred numbers bold."""
    cells = table.map(_latex_cell)
    names = [_escape(name) for name in table.columns]
    turned = len(names) > 10
    head = [names[0], *(f"\\rotatebox{{90}}{{{name}}}" if turned else name for name in names[1:])]
    lines = [" & ".join(head), *(" & ".join(row) for row in cells.itertuples(index=False))]
    body = "\n".join([f"{lines[0]} \\\\", "\\midrule", *(f"{line} \\\\" for line in lines[1:])])
    columns = "l" + "r" * (len(names) - 1)
    return (
        f"\\begin{{table}}\n\\caption{{{_escape(title)}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


def _latex_cell(text: str) -> str:
    return f"\\textbf{{{text[:-1]}}}" if text.endswith("*") else _escape(text)


def _escape(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "&%#_" else letter for letter in text)


def _drawn(tables: dict[str, pd.DataFrame], scores: pd.DataFrame, caption: str) -> Drawn:
    numbers, texts = [], {}
    for number, table in tables.items():
        table = table.fillna("").astype(str)
        numbers += [_TITLES[number], aligned([list(table.columns), *table.to_numpy().tolist()]), ""]
        texts[f"_table{number}.csv"] = table.to_csv(index=False)
    texts[".tex"] = "\n".join(latex(table.fillna("").astype(str), _TITLES[number]) for number, table in tables.items())
    return Drawn(None, scores, numbers, caption, texts)


COMMAND = Command("appendix_tables", "Tables 9, 10, 11 and 16 in the paper's form.", from_runs, from_paper, options)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
