"""What Figures 5 and 11 share: differences of two scores by data set, wins, and a comparison with printed ones."""

import pandas as pd

from experiments.figures.scores import averages, refuse_mixtures

PRINTED_STEP = 0.1 + 1e-9  # points: the printed numbers are rounded once more than their tables


def differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Rows task, metric, split, n, first, second, value (first minus second, fractions), the largest first.

    Args:
        first, second: tidy rows of one model each.
    Raises: UserError where their splits, metrics or data sets differ, or one has two sets of prompts.
    """
    for rows in (first, second):
        refuse_mixtures(rows)
    both = pd.concat([first.assign(model="first"), second.assign(model="second")])
    averages(both.assign(prompts="", prompts_hash=""))
    columns = ["task", "metric", "split", "n"]
    joined = first[[*columns, "value"]].merge(second[["task", "value"]], on="task", suffixes=("_first", "_second"))
    joined = joined.rename(columns={"value_first": "first", "value_second": "second"})
    return joined.assign(value=joined["first"] - joined["second"]).sort_values("value", ascending=False, kind="stable")


def lines(rows: pd.DataFrame, first: str, second: str) -> list[str]:
    """The numbers as text: each difference in points, and the data sets on which the first is better."""
    each = [f"{row.task:<20}{100 * row.value:+6.1f}" for row in rows.itertuples()]
    return [f"{first} minus {second}, points", *each, f"{first} is better on {wins(rows)}"]


def wins(rows: pd.DataFrame) -> str:
    """On how many data sets the first is better, and on how many both are equal to 0.05 points."""
    points = (100 * rows.value).round(6)
    better, equal = int((points > 0.05).sum()), int((points.abs() <= 0.05).sum())
    return f"{better} of {len(rows)} data sets" + (f", equal on {equal}" if equal else "")


def misprints(rows: pd.DataFrame, printed: pd.DataFrame) -> list[tuple[str, str]]:
    """Data sets whose printed difference is not that of the tables, within 0.1 points, each with a line about it."""
    points = {row.task: 100 * row.value for row in rows.itertuples()}
    return [
        (
            row.dataset,
            f"{row.dataset}: the figure prints {row.difference:+.1f}, the tables give {points[row.dataset]:+.1f}",
        )
        for row in printed.itertuples()
        if abs(row.difference - points[row.dataset]) > PRINTED_STEP
    ]
