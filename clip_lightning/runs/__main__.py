"""The commands of the registry: `python -m clip_lightning.runs ls|best|show|export|diff`."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_lightning.errors import UserError, run_command
from clip_lightning.formatting import aligned, clock, count, percent
from clip_lightning.reliability.status import standing
from clip_lightning.run_folders import CONFIG
from clip_lightning.runs.index import Index
from clip_lightning.runs.where import Condition, parse
from clip_lightning.score_names import is_share

Row = Mapping[str, Any]
_USUAL = ("state", "samples_seen", "total_samples", "seconds", "model", "data", "compute", "run")
# A run's status may say that it is at work although its process is gone.
_AT_WORK = ("running", "submitted")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clip_lightning.runs", description="Runs, from their directories alone."
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="the folder of runs (runs)")
    commands = parser.add_subparsers(required=True)
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument(
        "--where", metavar="CONDITION", help='like "model=vit_b32 and data=cc12m"; any column or config key'
    )
    listing = commands.add_parser("ls", parents=[chosen], help="a table of runs")
    listing.add_argument("--sort", metavar="KEY", help="a column or config key; scores and losses: the best first")
    listing.add_argument("--reverse", action="store_true", help="the other way round")
    listing.add_argument("--columns", nargs="+", default=[], metavar="KEY", help="further columns")
    listing.add_argument("--json", action="store_true", help="a line of JSON for each run")
    listing.set_defaults(command=_list)
    best = commands.add_parser("best", parents=[chosen], help="the directory of the best run by a score or loss")
    best.add_argument("key", metavar="KEY", help="like imagenet/acc1 or val_loss_1024")
    best.add_argument("-n", type=int, default=1, help="that many, the best first (1)")
    best.set_defaults(command=_best)
    show = commands.add_parser("show", help="everything that is known of one run")
    show.add_argument("run", metavar="RUN", help="a directory, or the name of a run in DIR")
    show.set_defaults(command=_show)
    export = commands.add_parser("export", parents=[chosen], help="a table with every key of every run")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help=".csv, .parquet or .jsonl")
    export.set_defaults(command=_export)
    diff = commands.add_parser("diff", help="the first thing in which two runs differ")
    diff.add_argument("a", metavar="A", help="a directory, or the name of a run in DIR")
    diff.add_argument("b", metavar="B")
    diff.set_defaults(command=_diff)
    return parser


def _list(arguments: argparse.Namespace) -> int:
    sort: list[str] = [arguments.sort] if arguments.sort else []
    columns = list(dict.fromkeys([*sort, *arguments.columns, *_USUAL]))
    rows = _selected(Index(arguments.runs), columns, arguments.where)
    if arguments.sort:
        rows = ordered(rows, arguments.sort, arguments.reverse)
    elif arguments.reverse:
        rows.reverse()
    if arguments.json:
        print("\n".join(json.dumps(row) for row in rows))
        return 0
    shown = [key for key in columns if key != "total_samples"]
    names = {"samples_seen": "samples", "seconds": "time"}
    lines = [[names.get(key, key) for key in shown]] + [[_cell(row, key) for key in shown] for row in rows]
    print(f"{aligned(lines)}\n{_num_runs(rows)}" if rows else f"no run in {arguments.runs} meets this condition")
    return 0


def _best(arguments: argparse.Namespace) -> int:
    rows = _selected(Index(arguments.runs), [arguments.key, "run"], arguments.where)
    measured = [row for row in ordered(rows, arguments.key) if isinstance(row[arguments.key], int | float)]
    if not measured:
        raise UserError(f"none of these runs has a number {arguments.key}; `ls --columns KEY` shows what they have")
    lines = [(str(arguments.runs / row["run"]), f"{row[arguments.key]:.6g}") for row in measured[: arguments.n]]
    print(aligned(lines))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from clip_lightning.runs.facts import facts_of  # imports pandas

    run = directory_of(arguments.run, arguments.runs)
    facts = facts_of(run)
    print(aligned([(key, json.dumps(value) if value in (None, "") else str(value)) for key, value in facts.items()]))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    path = arguments.out
    if path.suffix not in (".csv", ".parquet", ".jsonl"):
        raise UserError(f"--out {path}: write a name that ends in .csv, .parquet or .jsonl")
    index = Index(arguments.runs)
    chosen = {row["run"] for row in _selected(index, ["run"], arguments.where)}
    rows = [row for row in index.facts() if row["run"] in chosen]
    if path.suffix == ".jsonl":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        import pandas as pd

        from clip_lightning.scaling.collect import tidy, write

        write(tidy(pd.DataFrame(rows)), path)
    print(f"{path}: {_num_runs(rows)}")
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from clip_lightning.runs.diff import show  # reads configs

    print(show(*(directory_of(name, arguments.runs) for name in (arguments.a, arguments.b))))
    return 0


def directory_of(name: str, runs: Path) -> Path:
    """A run's directory, by its path or by its name in the folder of runs. Raises: UserError: there is none."""
    for path in (Path(name), runs / name):
        if (path / CONFIG).exists():
            return path.resolve()
    raise UserError(f"{name} is neither the directory of a run, with {CONFIG}, nor the name of one in {runs}")


def ordered(rows: Sequence[Row], key: str, reverse: bool = False) -> list[Row]:
    """Rows by one key: scores with the largest first, losses and everything else with the smallest; without it last."""
    has = [row for row in rows if row[key] is not None]
    is_score = "/" in key and "loss" not in key
    words = any(isinstance(row[key], str) for row in has)
    has.sort(key=lambda row: str(row[key]) if words else row[key], reverse=is_score != reverse)
    return [*has, *(row for row in rows if row[key] is None)]


def _selected(index: Index, columns: Sequence[str], where: str | None) -> list[Row]:
    """The rows that meet a condition, with their state now."""
    condition = parse(where) if where is not None else Condition((), lambda row: True)
    keys = list(dict.fromkeys([*columns, *condition.names, "state", "run"]))
    found: list[Row] = []
    for row in index.select(keys):
        if row["state"] in _AT_WORK:
            row["state"] = standing(index.folder / row["run"])[0]
        if condition.test(row):
            found.append({key: row[key] for key in columns})
    return found


def _num_runs(rows: Sequence[Row]) -> str:
    return f"{len(rows):,} run{'s' * (len(rows) != 1)}"


def _cell(row: Row, key: str) -> str:
    value = row[key]
    if value is None:
        return "-"
    if key == "samples_seen":
        return count(value) + (f"/{count(total)}" if (total := row["total_samples"]) else "")
    if key == "seconds":
        return clock(value)
    if isinstance(value, float):
        return percent(value) if is_share(key.rpartition("/")[2]) else f"{value:.6g}"
    return str(value)


if __name__ == "__main__":
    run_command(main)
