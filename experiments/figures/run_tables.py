"""Reads directories of runs into the tidy table of `scores`: the last measurement of every number on a task.

What a number was measured by is in the name of its record: `acc1` is zero-shot, `linear_probe_acc1` a linear probe,
`few_shot_16_acc1` a linear probe on 16 labelled images of a class, `supervised_acc1` a classifier trained on labels.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from clip_lightning.errors import UserError
from clip_lightning.formatting import count
from clip_lightning.records import Record, read_records
from experiments.figures.evaluation_lists import METRIC_NAMES
from experiments.figures.scores import table

_METHOD = re.compile(r"(?:(linear_probe|supervised)_|few_shot_(\d+)_)?(\w+)")
FILES = ("metrics.jsonl", "evaluation.jsonl")  # the second one is written by evaluate.py, after training


def read_runs(runs: Sequence[Path], weights: str = "") -> pd.DataFrame:
    """The tidy table of these runs.

    A run is named by its model; runs of one model also by their samples seen, and where these are equal too by their
    directories.

    Args:
        weights: which of a run's weights: empty for those of training, `ema` for their average.
    Raises:
        UserError: a path is not the directory of a run, or holds no measurement on a task.
    """
    problems = [f"{run} is not the directory of a run: it has no metrics.jsonl." for run in runs if not _is_run(run)]
    if problems:
        raise UserError(*problems)
    found = {run: _last(run, weights) for run in dict.fromkeys(path.resolve() for path in runs)}
    if empty := [run for run, records in found.items() if not records]:
        of = f" with weights={weights}" if weights else ""
        raise UserError(
            *(f"{run.name} has no measurement on a task{of}; make them: python evaluate.py run={run}" for run in empty)
        )
    names = _names({run: records[0] for run, records in found.items()})
    return table(_row(record, names[run], run) for run, records in found.items() for record in records)


def with_gflops(scores: pd.DataFrame, runs: Sequence[Path]) -> pd.DataFrame:
    """The rows with the operations of their models, which are counted by torch from the runs' configs."""
    folders = {path.resolve().name: path.resolve() for path in runs}
    return scores.assign(
        gflops=scores.run.map({name: image_gflops(folders[name]) for name in dict.fromkeys(scores.run)})
    )


@cache
def image_gflops(run: Path) -> float:
    """Billions of multiply-adds of a run's image tower for one image, which is half its floating-point operations."""
    from clip_lightning.config import compose
    from clip_lightning.model.flops import count_flops
    from clip_lightning.training.saved_model import refuse_targets

    config = compose.read(run / "config.yaml")
    refuse_targets(config, [])
    return count_flops(config.model, config.loss).image / 2e9


def parse(what: str) -> tuple[str, int | None, str]:
    """A record's name as method, shots and metric: `few_shot_16_acc1` -> ("few_shot", 16, "acc1")."""
    match = _METHOD.fullmatch(what)
    assert match, what
    method, shots, metric = match.groups()
    return ("few_shot" if shots else method or "zero_shot"), (int(shots) if shots else None), metric


def _is_run(path: Path) -> bool:
    return (path / FILES[0]).is_file()


def _last(run: Path, weights: str) -> list[Record]:
    """The newest record of every number on a task, those of evaluate.py after those of training."""
    newest: dict[tuple[object, ...], Record] = {}
    for file in (run / name for name in FILES):
        for record in read_records(file) if file.is_file() else ():
            if record.task and record.weights == weights and parse(record.what)[2] in METRIC_NAMES:
                key = (record.what, record.task, record.split, record.prompts, record.prompts_hash)
                if key not in newest or record.samples_seen >= newest[key].samples_seen:
                    newest[key] = record
    seen = max((record.samples_seen for record in newest.values()), default=0)
    return [record for record in newest.values() if record.samples_seen == seen]


def _names(first: dict[Path, Record]) -> dict[Path, str]:
    """A name for each run, the shortest by which they differ."""
    model = {run: record.model or run.name for run, record in first.items()}
    longer = {run: f"{model[run]}, {count(record.samples_seen)} samples" for run, record in first.items()}
    of_model, of_longer = list(model.values()), list(longer.values())
    return {
        run: model[run]
        if of_model.count(model[run]) == 1
        else longer[run]
        if of_longer.count(longer[run]) == 1
        else run.name
        for run in first
    }


def _row(record: Record, name: str, run: Path) -> dict[str, object]:
    method, shots, metric = parse(record.what)
    return {
        "model": name,
        "task": record.task,
        "method": method,
        "shots": shots,
        "metric": metric,
        "value": record.value,
        "low": record.low,
        "high": record.high,
        "n": record.n,
        "split": record.split,
        "prompts": record.prompts,
        "prompts_hash": record.prompts_hash,
        "chance": record.chance,
        "samples_seen": record.samples_seen,
        "run": run.name,
        "family": record.model,
    }
