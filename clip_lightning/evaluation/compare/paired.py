"""Paired differences of two models from their predictions of single images (`predictions.parquet`).

Both models saw the same images, so the difference is measured image by image. Accuracy: McNemar's exact test on the
images that one model alone classifies correctly, and Newcombe's interval of the difference (1998, method 10). Anything
else, and accuracy where equal logits make shares of hits: a bootstrap over images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.intervals import paired_difference
from clip_lightning.evaluation.measured import percentile_interval
from clip_lightning.evaluation.prediction_table import FILE, SCHEMA

PLACE = ["task", "split", "prompts", "index"]  # what names an image of a measurement
_BOOTSTRAP = "bootstrap over images"
COLUMNS = list(SCHEMA.names)


@dataclass(frozen=True)
class Difference:
    """The second model's value minus the first's, fractions.

    Attributes:
        metric: acc1 or mean_per_class.
        n: images that both models saw.
        difference, low, high: with its interval of 95 %.
        only_first, only_second: images that one model alone classifies correctly.
        p: of McNemar's exact test that both are equally likely; None where it does not apply.
        method: of the interval.
    """

    task: str
    split: str
    prompts: str
    metric: str
    n: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p: float | None
    method: str


def read_predictions(path: Path) -> pd.DataFrame:
    """The predictions of a run's directory, or of a file: `COLUMNS`, the last measurement of every image.

    Raises: UserError where there are none; DataError where the file is another one.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"{path} has no {FILE}; make it: python evaluate.py run={path} eval.keep_predictions=true, and name the "
            "directory of the run."
        )
    try:
        rows = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as parquet ({error}); evaluate again.") from error
    if missing := [name for name in COLUMNS if name not in rows.columns]:
        raise DataError(f"{file} has no column {', '.join(missing)}, so it holds no predictions; evaluate again.")
    # An image of a set in which images have several classes is not correct or wrong.
    return rows[COLUMNS].drop_duplicates(PLACE, keep="last").dropna(subset=["correct"])


def pair(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The images that both have: `PLACE`, key, label; and of each model predicted, correct, probability, with the
    endings `_first` and `_second`.

    Raises: UserError where they have none in common, or an image has another key or label in the second.
    """
    both = first.merge(second, on=PLACE, suffixes=("_first", "_second"))
    if both.empty:
        named = [sorted({f"{task} ({prompts})" for task, prompts in zip(rows.task, rows.prompts, strict=True)})
                 for rows in (first, second)]  # fmt: skip
        raise UserError(
            f"the two have no image in common: the first has {', '.join(named[0]) or 'none'}, the second "
            f"{', '.join(named[1]) or 'none'}; evaluate both on the same tasks and prompts."
        )
    for column, what in (("key", "image"), ("label", "label")):
        same = both[f"{column}_first"].astype(str) == both[f"{column}_second"].astype(str)
        if not same.all():
            row = both[~same].iloc[0]
            raise UserError(
                f"{row.task}, image {row['index']}: its {what} is {row[f'{column}_first']} in the first and "
                f"{row[f'{column}_second']} in the second, so they were measured on different data; evaluate again."
            )
    both = both.rename(columns={"key_first": "key", "label_first": "label"})
    return both.drop(columns=["key_second", "label_second"])


def differences(both: pd.DataFrame) -> list[Difference]:
    """The differences of every task and set of prompts; last the mean over tasks, where each has one set of prompts."""
    found = [one for rows in _groups(both) for one in _of_task(rows)]
    accuracy = [one for one in found if one.metric == "acc1"]
    if len({one.task for one in accuracy}) == len(accuracy) > 1:
        found.append(_mean(accuracy))
    return found


def disagreements(both: pd.DataFrame, most: int, seed: int = 0) -> pd.DataFrame:
    """Images that one model alone classifies correctly, drawn at random; of each model half, if it has enough."""
    first, second = both.correct_first >= 0.5, both.correct_second >= 0.5
    sides = [both[first & ~second], both[second & ~first]]
    sizes = [min(len(sides[k]), max(most - most // 2 if k else most // 2, most - len(sides[1 - k]))) for k in (0, 1)]
    return pd.concat([side.sample(size, random_state=seed) for side, size in zip(sides, sizes, strict=True)])


def _groups(both: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for _, rows in both.groupby(["task", "split", "prompts"], sort=False):
        yield rows


def _of_task(rows: pd.DataFrame) -> Iterator[Difference]:
    first, second = (rows[name].to_numpy(float) for name in ("correct_first", "correct_second"))
    change, n = second - first, len(rows)
    only_first, only_second = int((change <= -1).sum()), int((change >= 1).sum())
    task, split, prompts = (str(rows[name].iloc[0]) for name in ("task", "split", "prompts"))
    made = partial(
        Difference, task=task, split=split, prompts=prompts, n=n, only_first=only_first, only_second=only_second
    )
    if np.isin([first, second], [0, 1]).all():
        low, high = paired_difference(only_first, only_second, int((first * second).sum()), n)
        p, method = mcnemar(only_first, only_second), "McNemar, Newcombe"
    else:
        low, high = percentile_interval(lambda times: float(times @ change) / n, n)
        p, method = None, _BOOTSTRAP
    values = float(first.mean()), float(second.mean()), float(change.mean())
    yield made(
        metric="acc1", first=values[0], second=values[1], difference=values[2], low=low, high=high, p=p, method=method
    )
    labels = pd.to_numeric(rows.label, errors="coerce").to_numpy(float)
    if np.isfinite(labels).all() and (labels >= 0).all():
        number = np.unique(labels, return_inverse=True)[1]
        means = [_per_class(values, number, np.ones(n)) for values in (first, second)]
        low, high = percentile_interval(lambda times: _per_class(change, number, times), n)
        change_of_mean = means[1] - means[0]
        yield made(
            metric="mean_per_class", first=means[0], second=means[1], difference=change_of_mean, low=low, high=high,
            p=None, method=_BOOTSTRAP,
        )  # fmt: skip


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p of McNemar's exact test."""
    from scipy.stats import binomtest  # slow to import

    discordant = only_first + only_second
    return float(binomtest(only_second, discordant, 0.5).pvalue) if discordant else 1.0


def _per_class(values_n: np.ndarray, number_n: np.ndarray, times_n: np.ndarray) -> float:
    """The mean over classes of the means of each class's values, each row as many times as it says; a class without
    rows is left out.
    """
    counts = np.bincount(number_n, weights=times_n)
    sums = np.bincount(number_n, weights=times_n * values_n)
    return float((sums[counts > 0] / counts[counts > 0]).mean())


def _mean(accuracy: Sequence[Difference]) -> Difference:
    """The mean over tasks: independent images, so the squared distances of the intervals' ends add up."""
    table = pd.DataFrame([vars(one) for one in accuracy])
    difference, num = float(table.difference.mean()), len(table)
    below = float(np.sqrt(((table.difference - table.low) ** 2).sum())) / num
    above = float(np.sqrt(((table.high - table.difference) ** 2).sum())) / num
    return Difference(
        f"mean of {num} tasks", "", "", "acc1", int(table.n.sum()), float(table["first"].mean()),
        float(table.second.mean()), difference, difference - below, difference + above, int(table.only_first.sum()),
        int(table.only_second.sum()), None, "squared distances of the tasks' intervals",
    )  # fmt: skip
