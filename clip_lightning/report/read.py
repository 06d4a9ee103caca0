"""What a report shows of a run, read from its directory (`run/directory.py` lists the files); any but the config may
be absent, since the run may still be at work.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from clip_lightning.config import described
from clip_lightning.config.compose import read
from clip_lightning.config.frozen import tree
from clip_lightning.config.identity import flatten, science_hash
from clip_lightning.errors import UserError
from clip_lightning.records import to_frame
from clip_lightning.reliability.status import read_json, standing
from clip_lightning.run_folders import CONFIG, PLACES, STATUS, check_run
from clip_lightning.scaling.runs import complete_records


@dataclass(frozen=True)
class RunFiles:
    """One run.

    Attributes:
        label: its name, of several runs the end that distinguishes it from the others.
        config: as nested dictionaries; science: the hash of what decides what is learned.
        card: what was trained, as in a model card; empty where the config is of another version.
        state, reason: of the run now.
        records: one row per number, of the tasks' own prompts; of two at the same place the later one.
        code: the commit and the files that differ from it.
        starts: a dictionary for each start.
        divergences: lines of divergence.jsonl.
        bad_samples: number by cause.
    """

    path: Path
    label: str
    config: dict[str, Any]
    science: str
    card: dict[str, str]
    state: str
    reason: str
    records: pd.DataFrame
    summary: dict[str, Any]
    status: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    code: list[str]
    starts: list[dict[str, Any]]
    divergences: list[dict[str, Any]]
    bad_samples: Counter[str]

    @cached_property
    def _curves(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        """(what, task, weights) -> its rows by samples seen."""
        ordered = self.records.sort_values("samples_seen", kind="stable")
        return {(str(k[0]), str(k[1]), str(k[2])): rows for k, rows in ordered.groupby(["what", "task", "weights"])}

    def training(self, what: str) -> pd.DataFrame:
        """One quantity of training over samples seen."""
        return self.measured("", what)

    def tasks(self, what: str) -> list[str]:
        """The tasks that have a quantity, in the order of their first record."""
        return list(dict.fromkeys(self.records[(self.records.what == what) & (self.records.task != "")].task))

    def measured(self, task: str, what: str, weights: str = "") -> pd.DataFrame:
        """One quantity of a task over samples seen."""
        return self._curves.get((what, task, weights), self.records.iloc[:0])


def read_runs(paths: Sequence[Path], *, has_ended: bool = False) -> list[RunFiles]:
    """The runs of a page, each labelled by what distinguishes its name, or where two have one name, its path.

    Args: has_ended: see `read_run`.
    Raises: UserError: a folder holds no run, or is given twice.
    """
    resolved = [path.resolve() for path in paths]
    for path in paths:
        check_run(path)
    if len(set(resolved)) < len(resolved):
        raise UserError("a run is named twice; name each run once")
    labels = distinguishing([path.name for path in resolved], "-")
    if len(set(labels)) < len(labels):
        labels = distinguishing([str(path) for path in resolved], "/")
    return [read_run(path, label, has_ended=has_ended) for path, label in zip(resolved, labels, strict=True)]


def distinguishing(names: Sequence[str], separator: str) -> list[str]:
    """Names without the parts that all of them begin with; that of a single run stays as it is."""
    parts = [name.split(separator) for name in names]
    shortest = min(map(len, parts))
    common = next((k for k in range(shortest) if len({one[k] for one in parts}) > 1), shortest - 1)
    return [separator.join(one[common if len(names) > 1 else 0 :]) for one in parts]


def read_run(path: Path, label: str = "", *, has_ended: bool = False) -> RunFiles:
    """One run.

    Args: has_ended: the status is the last one, although this process still holds the run's lock.
    Raises: UserError: its config cannot be read.
    """
    git, metrics = path / "git.txt", path / "metrics.jsonl"
    records = to_frame(complete_records(metrics) if metrics.exists() else [])
    records = records[records.variant == ""]
    is_newest = ~records.duplicated(["what", "task", "weights", "samples_seen"], keep="last")
    hashes = records.science[records.science != ""]
    status, summary = (read_json(path / name) for name in (STATUS, "summary.json"))
    state, reason = (status["status"], status["reason"]) if has_ended else standing(path)
    return RunFiles(
        path=path,
        label=label or path.name,
        config=tree(path / CONFIG),
        science=hashes.iloc[0] if len(hashes) else science_hash(read(path / CONFIG)),
        card=_card(path),
        state=state,
        reason=reason,
        records=records[is_newest | (records.what == "skip_windows")],
        summary=summary,
        status=status,
        data=read_json(path / "data.json"),
        versions=read_json(path / "versions.json"),
        code=git.read_text(encoding="utf-8").splitlines() if git.exists() else [],
        starts=_lines(path / "starts.jsonl"),
        divergences=_lines(path / "divergence.jsonl"),
        bad_samples=Counter(summary.get("bad_samples") or _causes(path)),
    )


def _card(path: Path) -> dict[str, str]:
    try:
        config = read(path / CONFIG)
    except UserError:
        return {}
    return described.of_model(config.model) | described.of_training(config)


def differences(runs: Sequence[RunFiles]) -> list[tuple[str, list[Any]]]:
    """The config keys in which the runs differ, each with every run's value; where the runs lie is no difference."""
    flat = [flatten(run.config) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one if key not in PLACES)
    absent = "(absent)"
    rows = [(key, [one.get(key, absent) for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _causes(path: Path) -> Counter[str]:
    files = sorted(path.glob("bad_samples*.jsonl"))
    return Counter(str(line.get("cause", "unknown")) for file in files for line in _lines(file))


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSONL file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
