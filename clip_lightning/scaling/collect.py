"""The verb collect: one tidy row per run, of runs of this project, of open_clip, or of a published table.

Runs that failed, diverged or never started stay as rows, with the reason.
"""

import argparse
from pathlib import Path

import pandas as pd

from clip_lightning.errors import UserError
from clip_lightning.formatting import aligned, listed
from clip_lightning.scaling import open_clip_runs, published, runs

HELP = "one tidy row per run, of this project, of open_clip, or of a published table"
# The first columns of a tidy table; metrics follow, each with its number of images or candidates in NAME_n.
COLUMNS = (
    "run", "state", "reason", "model", "data", "compute", "science", "parameters", "flops_per_sample", "model_flops",
    "hardware_flops", "samples_seen", "total_samples", "unique_samples", "epochs", "global_batch", "learning_rate",
    "warmup_samples", "schedule", "phase", "optimizer", "beta2", "weight_decay", "precision", "seed", "seconds",
    "train_loss",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of collect."""
    parser.add_argument("runs", nargs="*", type=Path, metavar="DIR", help="runs, folders of runs, or sweeps")
    parser.add_argument("--open-clip", nargs="+", type=Path, default=[], metavar="DIR", help="runs of open_clip")
    parser.add_argument("--table", type=Path, help="a published table, read by --mapping")
    parser.add_argument("--mapping", help=f"a YAML file, or one of {', '.join(published.carried())}")
    parser.add_argument(
        "--without-flops", action="store_true", help="do not count FLOPs of models that are not in conf"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".csv or .parquet")


def run(arguments: argparse.Namespace) -> int:
    """Collects, prints a summary, writes."""
    if bool(arguments.table) != bool(arguments.mapping):
        raise UserError("--table and --mapping belong together; write both, or name directories of runs")
    tables = []
    if arguments.table:
        tables.append(published.read(arguments.table, arguments.mapping))
    rows = [row for path in arguments.runs for row in runs.rows_of(path, count_flops=not arguments.without_flops)]
    rows += [open_clip_runs.row_of(path) for path in arguments.open_clip]
    if rows:
        tables.append(pd.DataFrame(rows))
    if not tables:
        raise UserError("collect: nothing to collect; name directories of runs, --open-clip DIR, or --table FILE")
    table = tidy(pd.concat(tables, ignore_index=True))
    write(table, arguments.out)
    print(summary(table))
    print(f"written    {arguments.out}: {len(table)} rows, {len(table.columns)} columns")
    return 0


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """The columns in their order, without those that are empty."""
    first = [name for name in COLUMNS if name in table]
    rest = [name for name in table.columns if name not in COLUMNS]
    return table[first + rest].dropna(axis=1, how="all")


def write(table: pd.DataFrame, path: Path) -> None:
    """Writes the table, complete or not at all. Raises: UserError: the name ends neither in .csv nor in .parquet."""
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out {path}: write a name that ends in .csv or .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".writing")
    if path.suffix == ".csv":
        table.to_csv(temporary, index=False)
    else:
        table.to_parquet(temporary, index=False)
    temporary.replace(path)


def summary(table: pd.DataFrame) -> str:
    """How many runs are in each state, and which metrics there are."""
    states = table["state"].value_counts() if "state" in table else pd.Series({"published": len(table)})
    metrics = [name for name in table.columns if name not in COLUMNS and not str(name).endswith("_n")]
    lines = [("runs", ", ".join(f"{num} {state}" for state, num in states.items())), ("metrics", listed(metrics, 12))]
    if "reason" in table:
        bad = table[table["state"] != "finished"] if "state" in table else table.iloc[:0]
        lines += [("", f"{row.run}: {row.state}, {row.reason}") for row in bad.itertuples()]
    return aligned(lines)
