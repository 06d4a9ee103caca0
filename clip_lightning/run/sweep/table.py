"""The state of a sweep: its cells and the progress of each. Reads only, and imports no torch.

    runs/sweeps/<experiment or grid>-<hash of its cells>/
        sweep.json            the command, and of every cell its settings, arguments and run; stands before the first
        failures/<run>.json   why a cell ended that has no directory of its own, or could not say it there

The cells of a sweep are ordinary runs, in `runs/` beside all others. A sweep is named by the names of its cells' runs,
and these by their science: the same command, or another for the same cells on another machine, finds the same sweep.
A launcher is handed the folder in the environment variable `SWEEP_VARIABLE`; `read(folder).pending()` is what there is
to do, and `note_failure` records an end that the run could not record itself.

`python -m clip_lightning.run.sweep status DIR` shows the table of a sweep, or of any folder of runs.
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clip_lightning.errors import UserError
from clip_lightning.formatting import aligned, clock, count
from clip_lightning.reliability.run_paths import SWEEPS
from clip_lightning.reliability.status import read_json, standing
from clip_lightning.run.sweep.metric import Curve
from clip_lightning.run_folders import STATUS, run_folders

FILE, FAILURES = "sweep.json", "failures"
# In the order in which a person wants to see them, and every state there is.
STATES = ("failed", "interrupted", "stopped", "running", "submitted", "waiting", "finished")


@dataclass(frozen=True)
class SweepCell:
    """One cell: the name of its run's directory, the settings that distinguish it, its whole command."""

    run: str
    settings: list[str]
    argv: list[str]


@dataclass(frozen=True)
class SweepRecord:
    """What `sweep.json` holds.

    Attributes:
        path: the sweep's own directory, `<runs>/sweeps/<name>`.
        command: the arguments of train.py that repeat the sweep.
    """

    path: Path
    command: list[str]
    cells: list[SweepCell]

    def run_of(self, cell: SweepCell) -> Path:
        """The directory of a cell's run, whether or not it exists."""
        return self.path.parent.parent / cell.run

    def standing(self, cell: SweepCell) -> tuple[str, str]:
        """A cell's state and its reason."""
        state, reason = standing(self.run_of(cell))
        noted = read_json(failure_file(self.path, cell.run))
        if noted and state in ("waiting", "interrupted", "failed"):
            return "failed", reason if state == "failed" else noted["reason"]
        return state, reason

    def pending(self) -> list[SweepCell]:
        """The cells that are to be run: neither finished nor at work."""
        return [cell for cell in self.cells if self.standing(cell)[0] not in ("finished", "running")]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        state: one of `STATES`; `reason` says why it is that.
        metric: the best value of the table's metric so far; None before the first.
        seconds: of training so far; `seconds_left` estimated from the speed of a running run.
    """

    run: str
    settings: list[str]
    state: str
    reason: str
    samples_seen: int
    total_samples: int | None
    metric: float | None
    seconds: float | None
    seconds_left: float | None


def read(path: Path) -> SweepRecord:
    """The record of a sweep.

    Raises: UserError where there is none.
    """
    content = read_json(path / FILE)
    if not content:
        raise UserError(f"{path} is not a sweep: it has no {FILE}; name a folder in runs/{SWEEPS}")
    return SweepRecord(path.absolute(), content["command"], [SweepCell(**cell) for cell in content["cells"]])


def failure_file(sweep: Path, run: str) -> Path:
    """Where the reason of a cell's end is noted."""
    return sweep / FAILURES / f"{run}.json"


def rows_of(path: Path, metric: str | None = None) -> tuple[list[Row], str]:
    """The rows of a sweep's directory or of a folder of runs, and the metric that they show.

    Args:
        metric: WHAT or TASK/WHAT of the runs' records; None: the first usual one that any of them has.
    Raises: UserError where there is neither.
    """
    if (path / FILE).exists():
        record = read(path)
        cells = [(record.run_of(cell), cell.settings, record.standing(cell)) for cell in record.cells]
    elif path.is_dir():
        cells = [(run, _settings_of_run(run), standing(run)) for run in run_folders(path, STATUS)]
    else:
        raise UserError(f"{path} does not exist; name a folder in runs/{SWEEPS}, or a folder of runs")
    if not cells:
        raise UserError(f"{path} holds neither {FILE} nor runs; name a folder in runs/{SWEEPS}, or a folder of runs")
    curves = [Curve.read(run / "metrics.jsonl") for run, _, _ in cells]
    metric = metric or next((name for name in map(Curve.usual_metric, curves) if name), "loss")
    return [_row(*cell, curve, metric) for cell, curve in zip(cells, curves, strict=True)], metric


def table(rows: Sequence[Row], metric: str) -> str:
    """The rows for a person, failures first, and a line that counts them."""
    head = ("state", "samples", f"best {metric}", "time", "eta", "run", "settings")
    lines = [head]
    for row in sorted(rows, key=lambda row: STATES.index(row.state)):
        of = f"/{count(row.total_samples)}" if row.total_samples else ""
        lines.append(
            (
                row.state,
                f"{count(row.samples_seen)}{of}",
                "-" if row.metric is None else f"{row.metric:.4g}",
                "-" if row.seconds is None else clock(row.seconds),
                "-" if row.seconds_left is None else clock(row.seconds_left),
                row.run,
                " ".join(row.settings) + (f"  ({row.reason})" if row.reason else ""),
            )
        )
    counts = Counter(row.state for row in rows)
    total = ", ".join(f"{counts[state]} {state}" for state in reversed(STATES) if counts[state])
    return f"{aligned(lines)}\n{len(rows)} runs: {total}"


def main() -> None:
    """Shows the state of a sweep."""
    parser = argparse.ArgumentParser(prog="python -m clip_lightning.run.sweep", description="Sweeps of train.py -m.")
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="a table of a sweep's cells, or of the runs in a folder")
    status.add_argument("folder", type=Path, metavar="DIR", help=f"a folder in runs/{SWEEPS}, or a folder of runs")
    status.add_argument("--metric", metavar="[TASK/]WHAT", help="another column, like acc1, shape/acc5 or loss")
    status.add_argument("--json", action="store_true", help="the rows as JSON, fractions and seconds")
    arguments = parser.parse_args()
    try:
        rows, metric = rows_of(arguments.folder, arguments.metric)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if arguments.json:
        print(json.dumps({"metric": metric, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print(table(rows, metric))


def _row(run: Path, settings: list[str], standing: tuple[str, str], curve: Curve, metric: str) -> Row:
    status: dict[str, Any] = read_json(run / "status.json")
    seen, total, seconds = status.get("samples_seen", 0), status.get("total_samples"), curve.seconds
    left = (total - seen) * seconds / seen if standing[0] == "running" and seen and total and seconds else None
    return Row(run.name, settings, *standing, seen, total, curve.best(metric), seconds, left)


def _settings_of_run(run: Path) -> list[str]:
    """The command that a run was last started with, without where it runs."""
    starts = run / "starts.jsonl"
    lines = starts.read_text(encoding="utf-8").splitlines() if starts.exists() else []
    command = json.loads(lines[-1])["command"] if lines else []
    return [shlex.quote(word) for word in command if not word.startswith(("runs=", "logger"))]
