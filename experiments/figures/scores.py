"""The tidy table that every figure reads: one row per model, data set, method and metric; and its averages.

| column | |
|---|---|
| model | name that the figure shows |
| task | data set |
| method | zero_shot, linear_probe, few_shot or supervised |
| shots | labelled images of a class, of few_shot |
| metric | acc1, mean_per_class, ... |
| value, low, high | fractions of 1, with the 95 % interval where there is one |
| n | images it was counted over |
| split, prompts, prompts_hash, chance, samples_seen, run | as in `records.Record` |
| family, gflops | of the model: its line in a figure; billions of multiply-adds of the image tower for one image |
"""

from collections.abc import Iterable

import pandas as pd

from clip_lightning.errors import UserError
from clip_lightning.formatting import listed
from experiments.figures.evaluation_lists import METRIC_NAMES, known_list

COLUMNS = [
    "model",
    "task",
    "method",
    "shots",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "split",
    "prompts",
    "prompts_hash",
    "chance",
    "samples_seen",
    "run",
    "family",
    "gflops",
]
MODEL_COLUMNS = ["model", "family", "gflops", "run", "samples_seen"]
_MOST_ROWS = 6  # of differing rows that a refusal shows


def table(rows: Iterable[dict[str, object]]) -> pd.DataFrame:
    """The tidy table of these rows; what a row leaves out is missing."""
    return pd.DataFrame(list(rows), columns=COLUMNS)


def select(scores: pd.DataFrame, method: str, needed: str) -> pd.DataFrame:
    """The rows of a method.

    Raises: UserError with `needed`, the sentence that says how they are made, when there are none.
    """
    found = scores[scores.method == method]
    if found.empty:
        raise UserError(needed)
    return found


def averages(scores: pd.DataFrame) -> pd.DataFrame:
    """The mean over data sets of each model: model, family, gflops, run, samples_seen, value, num_tasks.

    Raises:
        UserError: rows that may not be averaged together, or a model that lacks a data set of the others.
    """
    refuse_mixtures(scores)
    tasks = list(dict.fromkeys(scores.task))
    problems = []
    for model, rows in scores.groupby("model", sort=False):
        if missing := [task for task in tasks if task not in set(rows.task)]:
            problems.append(
                f"{model} was not measured on {listed(missing)}, which other models were, so their averages do not "
                "compare; evaluate it there, or name the data sets with --tasks."
            )
    if problems:
        raise UserError(*problems)
    means = scores.groupby(MODEL_COLUMNS, sort=False, dropna=False).value.agg(["mean", "size"]).reset_index()
    return means.rename(columns={"mean": "value", "size": "num_tasks"})


def refuse_mixtures(scores: pd.DataFrame) -> None:
    """Raises UserError where one average would mix splits, prompts or metrics, with the rows that differ.

    Within a data set every model must have the same split, prompts and metric. Over data sets the metric must be the
    same unless a named list fixes it, and so must the prompts where they are not the data sets' own. Parts of several
    data sets have names of their own, so that splits are not compared over data sets.
    """
    repeated = scores[scores.duplicated(["model", "task"], keep=False)]
    for column in ("split", "metric", "prompts", "prompts_hash"):
        for task, rows in scores.groupby("task", sort=False):
            if rows[column].nunique(dropna=False) > 1:
                raise UserError(_refusal(f"{column} of {task}", rows, column))
    if len(repeated):
        raise UserError(_refusal("measurements of one model on one data set", repeated, "value"))
    if known_list(list(scores.task.unique())) is None and scores.metric.nunique() > 1:
        raise UserError(_refusal("metric over data sets", scores, "metric"))


def _refusal(what: str, rows: pd.DataFrame, column: str) -> str:
    differing = rows.drop_duplicates(["task", column]) if column != "value" else rows
    shown = [f"{row.model} on {row.task}: {getattr(row, column)}" for row in differing.itertuples()]
    fix = "choose with --prompts, --tasks or --metric, or evaluate again"
    return f"one average would mix the {what} ({'; '.join(shown[:_MOST_ROWS])}); {fix}."


def describe(scores: pd.DataFrame) -> str:
    """What a caption says of the measurements: evaluation list, metric, split, prompts and n."""
    tasks = list(dict.fromkeys(scores.task))
    found = known_list(tasks)
    title = found.title if found else listed(tasks, 6)
    metrics = list(dict.fromkeys(scores.metric))
    metric = METRIC_NAMES.get(metrics[0], metrics[0]) if len(metrics) == 1 else "each by its metric of Table 9"
    counted = scores.n.dropna().astype(int)
    n = f"n = {number_range(int(counted.min()), int(counted.max()))} images" if len(counted) else "n not recorded"
    splits, prompts = (
        listed(dict.fromkeys(scores.split)),
        listed(name for name in dict.fromkeys(scores.prompts) if name),
    )
    return f"{title}; {metric}; split: {splits}; {f'prompts: {prompts}; ' if prompts else ''}{n}."


def number_range(low: int, high: int) -> str:
    """1797, 10000 -> '1,797 to 10,000'; one number where both are equal."""
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def one_model(scores: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of a model. Raises UserError when there are none."""
    found = scores[scores.model == model]
    if found.empty:
        raise UserError(f"{model} has no such measurements; there are those of {listed(dict.fromkeys(scores.model))}.")
    return found
