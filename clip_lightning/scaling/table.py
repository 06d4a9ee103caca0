"""Reads a table, selects rows, and refuses what no law can be fitted to: one sentence for each fault, with its row.

Rows are counted from 1 after the header and keep their numbers through every selection.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from clip_lightning.config.keys import did_you_mean, near
from clip_lightning.errors import UserError
from clip_lightning.formatting import listed
from clip_lightning.scaling.forms import Array, Form

# Part of a name of a quantity -> its kind; the first that occurs in the name counts.
_KINDS = {"loss": "loss", "entropy": "loss", "nats": "loss", "err": "error"} | dict.fromkeys(
    ("acc", "recall", "top1", "top5", "mean_per_class", "r@"), "accuracy"
)
_TRAINING_LOSSES = ("loss", "train_loss", "training_loss", "train/loss")
_BATCHES = ("global_batch", "batch", "batch_size", "global_bs")
_CONDITION = re.compile(r"\s*(.+?)\s*(>=|<=|!=|=|>|<)\s*(.+?)\s*")
# Values of one quantity that differ by less than this share count as one value.
SAME_VALUE = 0.02


@dataclass(frozen=True)
class Points:
    """What a fit reads.

    Attributes:
        columns: role -> column: x, n, d, u, loss for inputs, y for the answer.
        inputs: role -> [N].
        y: [N] as the law sees it: a loss, an error 1 - accuracy, or for `two_step` an accuracy.
        kind: loss, error or accuracy: of the column y, not of what the law sees.
        rows: [N] row numbers of the table, from 1.
        clusters: [N] numbers of the groups that a bootstrap draws as one.
    """

    columns: dict[str, str]
    inputs: dict[str, Array]
    y: Array
    kind: str
    rows: Array
    clusters: Array

    def __len__(self) -> int:
        return len(self.y)

    def matrix(self, form: Form) -> Array:
        """The inputs of a form, [N, I]."""
        return np.stack([self.inputs[role] for role in form.inputs], axis=1)

    def take(self, keep: Array) -> "Points":
        """Some of the points."""
        inputs = {role: value[keep] for role, value in self.inputs.items()}
        return Points(self.columns, inputs, self.y[keep], self.kind, self.rows[keep], self.clusters[keep])

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the numbers that are fitted."""
        numbers = np.stack([*self.inputs.values(), self.y], axis=1)
        return hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()[:16]


def read_table(path: Path) -> pd.DataFrame:
    """A CSV (also .gz), JSONL or parquet file; its index is the row's number from 1.

    Raises: UserError: it is missing or cannot be read.
    """
    readers = {".parquet": pd.read_parquet, ".jsonl": lambda file: pd.read_json(file, lines=True)}
    try:
        table: pd.DataFrame = readers.get(path.suffix, pd.read_csv)(path)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
        raise UserError(f"{path}: this table cannot be read ({reason}); it is a .csv, .jsonl or .parquet") from error
    if table.empty:
        raise UserError(f"{path}: this table has no rows; run collect first, or name another file")
    table.index = pd.RangeIndex(1, len(table) + 1)
    return table


def matches(table: pd.DataFrame, condition: str) -> pd.Series:
    """Which rows meet a condition like `samples>1e6`, `data=cc12m` or `seed!=2`.

    Raises: UserError: it is not one, or names no column.
    """
    found = _CONDITION.fullmatch(condition)
    if not found:
        raise UserError(f'"{condition}" is not a condition; write it like "COLUMN>VALUE" or COLUMN=VALUE')
    name, operator, text = found.groups()
    column = of_table(table, name)
    if operator in ("=", "!="):
        number = pd.to_numeric(pd.Series([text]), errors="coerce").iloc[0]
        same = column == number if pd.api.types.is_numeric_dtype(column) else column.astype(str) == text
        return ~same if operator == "!=" else same
    try:
        number = float(text)
    except ValueError as error:
        raise UserError(f'"{condition}": {text} is not a number; only = and != compare words') from error
    numbers = pd.to_numeric(column, errors="coerce")
    return {">": numbers.gt, ">=": numbers.ge, "<": numbers.lt, "<=": numbers.le}[operator](number)


def of_table(table: pd.DataFrame, name: str) -> pd.Series:
    """A column. Raises: UserError: there is none of this name."""
    if name not in table:
        close = did_you_mean(near(name, [str(column) for column in table.columns]))
        raise UserError(f"the table has no column {name}{close}; it has {listed(table.columns, 30)}")
    return table[name]


def kind_of(name: str) -> str:
    """Loss, error or accuracy, by the name of a quantity; loss where the name says nothing."""
    found = [(name.lower().index(part), kind) for part, kind in _KINDS.items() if part in name.lower()]
    return min(found)[1] if found else "loss"


def select(table: pd.DataFrame, wanted: Sequence[str]) -> pd.DataFrame:
    """The rows that meet all conditions. Raises: UserError: none does."""
    keep = pd.Series(True, table.index)
    for condition in wanted:
        keep &= matches(table, condition)
    if not keep.any():
        raise UserError(f"no row meets {' and '.join(wanted)}; look at the table's values, or leave --where out")
    return table[keep]


def points_of(
    table: pd.DataFrame, columns: Mapping[str, str], form: str, kind: str | None = None, cluster: str | None = None
) -> Points:
    """The columns of a table as checked points.

    Args:
        columns: role -> column.
        form: its name: `two_step` keeps accuracies; other forms fall, so that an accuracy becomes an error.
        kind: loss, error or accuracy; None: by the column's name.
        cluster: column of groups that a bootstrap draws as one; None: every row is its own.
    Raises: UserError: every fault in the rows.
    """
    for name in [*columns.values(), *([cluster] if cluster else [])]:
        of_table(table, name)
    found_kind = kind or kind_of(columns["y"])
    numbers = {role: pd.to_numeric(table[name], errors="coerce").astype(float) for role, name in columns.items()}
    if problems := [*_mixed(table, columns["y"]), *_wrong_numbers(numbers, columns, found_kind)]:
        raise UserError(*problems)
    if problems := _repeated(table, columns):
        raise UserError(*problems)
    y = numbers.pop("y").to_numpy()
    if found_kind == "accuracy" and form != "two_step":
        y = 1 - y
    groups = table[cluster].astype(str) if cluster else pd.Series(table.index, table.index)
    inputs = {role: column.to_numpy() for role, column in numbers.items()}
    return Points(dict(columns), inputs, y, found_kind, table.index.to_numpy(), pd.factorize(groups)[0])


def check_design(points: Points, form: Form) -> None:
    """Refuses points that cannot determine the form, whatever their values are.

    Raises: UserError: too few points, one budget, or one data size.
    """
    problems = []
    if len(points) < form.num_parameters:
        names = ", ".join((*form.coefficients, *form.exponents))
        problems.append(
            f"{form.name} has {form.num_parameters} parameters ({names}) and the table only {len(points)} points, "
            f"row {points.rows[-1]} the last; add runs, or use a form with fewer parameters"
        )
    for role in form.inputs:
        needed = 2 if form.name == "power" or role != "x" else 3
        if (num := num_distinct(points.inputs[role])) < needed:
            what = {"x": "budget", "n": "model size", "d": "data size"}.get(role, "value")
            problems.append(
                f"all rows ({points.rows[0]} to {points.rows[-1]}) have {num} {what}{'s' * (num > 1)} in "
                f"{points.columns.get(role, role)}, and {form.name} needs {needed} or more; add runs at others"
            )
    if "n" in form.inputs and not problems and num_distinct(points.inputs["n"] * points.inputs["d"]) < 2:
        problems.append(
            f"all rows ({points.rows[0]} to {points.rows[-1]}) have one budget, n x d; a surface needs two or more, "
            "so add runs at another budget"
        )
    if not problems and (num := num_places(points.matrix(form))) < form.num_parameters:
        problems.append(
            f"{form.name} has {form.num_parameters} parameters and the {len(points)} rows, {points.rows[0]} to "
            f"{points.rows[-1]}, are at {num} places of {', '.join(form.inputs)}: further seeds of one place determine "
            "none; add runs at others, or use a form with fewer parameters"
        )
    if problems:
        raise UserError(*problems)


def num_places(inputs: Array) -> int:
    """How many different rows inputs [N, I] have, where values that differ by about `SAME_VALUE` are one."""
    return len(np.unique(np.round(np.log(inputs) / np.log1p(SAME_VALUE)), axis=0))


def num_distinct(values: Array) -> int:
    """How many values differ by more than `SAME_VALUE` of themselves."""
    ordered = np.sort(values)
    return 1 + int(np.sum(ordered[1:] > ordered[:-1] * (1 + SAME_VALUE)))


def _mixed(table: pd.DataFrame, y: str) -> list[str]:
    problems = []
    for name, what in (("metric", "metrics"), (f"{y}_n", "numbers of candidates or images")):
        if name in table and (values := table[name].dropna()).nunique() > 1:
            first = values.iloc[0]
            row = values.index[values != first][0]
            problems.append(
                f"row {row}: {name} is {values[row]}, and {first} before; one law has one of such {what}, so select "
                f"rows by --where {name}={first}"
            )
    batch = next((name for name in _BATCHES if name in table), None)
    if y in _TRAINING_LOSSES and batch and (values := table[batch].dropna()).nunique() > 1:
        row = values.index[values != values.iloc[0]][0]
        problems.append(
            f"row {row}: {batch} is {values[row]}, and {values.iloc[0]} before; the training loss of a contrastive "
            "model depends on the batch (guessing has ln(batch)), so fit val_loss_1024, which has fixed candidates"
        )
    return problems


def _wrong_numbers(numbers: Mapping[str, pd.Series], columns: Mapping[str, str], kind: str) -> list[str]:
    problems = []
    for role, column in numbers.items():
        name = columns[role]
        problems += [
            f"row {row}: {name} is empty or not a number; fill it, or leave the row out by --where"
            for row in column.index[~np.isfinite(column)]
        ]
        if kind == "loss" or role != "y":
            what = "a loss" if role == "y" else "an input"
            problems += [
                f"row {row}: {name}={column[row]:g}, and {what} must be above 0; correct it, or leave the row out"
                for row in column.index[column <= 0]
            ]
        else:
            problems += [
                f"row {row}: {name}={column[row]:g} is outside 0 to 1; {'an accuracy' if kind == 'accuracy' else 'an'} "
                f"{'' if kind == 'accuracy' else 'error '}is a fraction, so divide percents by 100"
                for row in column.index[(column > 1) | (column < 0)]
            ]
    return problems


def _repeated(table: pd.DataFrame, columns: Mapping[str, str]) -> list[str]:
    """Rows equal in all that is fitted, and in their seed."""
    names = [*dict.fromkeys(columns.values()), *(["seed"] if "seed" in table else [])]
    problems = []
    for row in table.index[table.duplicated(names)]:
        same = (table[names] == table.loc[row, names]).all(axis=1)
        problems.append(
            f"row {row} repeats row {table.index[same][0]} ({', '.join(names)} are equal); leave one of them out"
        )
    return problems
