"""The end of a run in numbers: `summary.json`, and the table that is printed. Both are computed from its records."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_lightning.formatting import aligned, clock, count, own_command, percent, with_interval
from clip_lightning.records import EMA, Record
from clip_lightning.score_names import OWN_METRICS, SCORES, task_name

_FURTHER = {"acc5": "top-5", "mean_per_class": "mean per class"}


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    Attributes:
        status: finished, stopped, failed; `reason` says why in a few words.
        seconds: of all starts together.
        num_devices: of all nodes; `gpu`: whether they are GPUs.
        records: all records of the run.
        bad_samples: number by cause.
    """

    run: str
    path: Path
    status: str
    reason: str
    samples: int
    total_samples: int
    seconds: float
    parameters: int
    science: str
    num_devices: int
    gpu: bool
    restarts: int
    records: Sequence[Record]
    bad_samples: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What `summary.json` holds: accuracies and shares as fractions of 1; under `ema` those of averaged weights."""
        latest, averaged = (latest_scores(self.records, weights) for weights in ("", EMA))
        return {
            "run": self.run,
            "status": self.status,
            "reason": self.reason,
            "zeroshot": zero_shot(latest),
            "validation": validation(latest),
            "ema": {"zeroshot": zero_shot(averaged), "validation": validation(averaged)} if averaged else None,
            "samples": self.samples,
            "total_samples": self.total_samples,
            "seconds": self.seconds,
            "parameters": self.parameters,
            "science": self.science,
            "loss": last_value(self.records, "loss"),
            "samples_per_second": median(self.records, "samples_per_second"),
            "mfu": median(self.records, "mfu"),
            "data_wait": mean(self.records, "data_wait"),
            "memory_gib": largest(self.records, "memory_gib"),
            "cut_captions": mean(self.records, "cut_captions"),
            "evaluation_share": self.evaluation_share,
            "restarts": self.restarts,
            "skipped_steps": last_value(self.records, "skipped_steps"),
            "rollbacks": len(values(self.records, "skip_windows")),
            "bad_samples": dict(self.bad_samples),
        }

    @property
    def evaluation_share(self) -> float | None:
        """The share of the run's time that evaluation took; None without one."""
        spent = {r.samples_seen: r.value for r in self.records if r.what == "evaluation_seconds"}
        last = spent.get(self.samples, 0.0)  # the evaluation at the end is after `seconds`
        return min(1.0, sum(spent.values()) / max(self.seconds + last, 1e-9)) if spent else None


def end_table(summary: Summary, argv: Sequence[str] = ()) -> str:
    """The table at the end of a run; `argv` are the arguments of the command that started it."""
    content = summary.as_json()
    hours = summary.seconds * summary.num_devices / 3600
    bad = ", ".join(f"{number} {cause}" for cause, number in summary.bad_samples.items()) or "none"
    rows = [
        ("status", summary.status + (f": {summary.reason}" if summary.reason else "")),
        ("samples", f"{summary.samples:,} of {summary.total_samples:,}"),
        ("time", f"{clock(summary.seconds)} ({hours:.2f} {'GPU' if summary.gpu else 'CPU process'} hours)"),
        ("throughput", f"{_shown(content['samples_per_second'], count)} samples/s (median)"),
        ("MFU", _shown(content["mfu"], percent) if summary.gpu else "the peak of a CPU is not known"),
        ("peak memory", f"{_shown(content['memory_gib'], '{:.2f}'.format)} GiB per process"),
        ("data waits", f"{_shown(content['data_wait'], percent)} of training time"),
        ("evaluation", _shown(content["evaluation_share"], lambda share: f"{percent(share)} of the run's time")),
        ("cut captions", _shown(content["cut_captions"], percent)),
        ("restarts", str(summary.restarts)),
        ("skipped steps", f"{_shown(content['skipped_steps'], count)}; {content['rollbacks']} rollbacks"),
        ("bad samples", bad),
        *_score_rows(summary.records),
        *[("note", line) for line in note_lines(latest_scores(summary.records))],
        ("directory", str(summary.path)),
        ("evaluate", own_command("evaluate", [f"run={summary.path}"])),
        ("resume" if summary.status != "finished" else "run again", own_command("train", argv)),
    ]
    return aligned(rows)


def latest_scores(records: Sequence[Record], weights: str = "") -> list[Record]:
    """Of each task and quantity the record with the most samples seen, the later of two with the same.

    Args: weights: as in a record: those of training, or their average.
    """
    found: dict[tuple[str, str], Record] = {}
    for record in records:
        key = record.task, record.what
        if (
            record.task
            and record.weights == weights
            and not record.variant
            and (key not in found or record.samples_seen >= found[key].samples_seen)
        ):
            found[key] = record
    return list(found.values())


def zero_shot(latest: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Accuracies of each task and its own metric with chance and n, by task."""
    tasks: dict[str, dict[str, Any]] = {}
    for record in latest:
        if record.what in (*SCORES, *OWN_METRICS):
            found = tasks.setdefault(record.task, {})
            found[record.what] = record.value
            if record.what == "acc1" or (record.what in OWN_METRICS and "n" not in found):
                found |= {"chance": record.chance, "n": record.n, "low": record.low, "high": record.high}
    return tasks


def validation(latest: Sequence[Record]) -> dict[str, float]:
    """Losses and recalls of the validation pairs."""
    return {record.what: record.value for record in latest if record.task == "validation"}


def score_table(records: Sequence[Record]) -> str:
    """One row per task of an evaluation."""
    return aligned(_score_rows(records))


def note_lines(records: Sequence[Record]) -> list[str]:
    """What the records say beside their numbers, a line per task."""
    notes = dict.fromkeys((record.task, record.note) for record in records if record.note)
    return [f"{task}: {note}" for task, note in notes]


def _score_rows(records: Sequence[Record]) -> list[tuple[str, str]]:
    return [row for weights in ("", EMA) for row in _rows_of(latest_scores(records, weights), weights)]


def _rows_of(latest: Sequence[Record], weights: str) -> list[tuple[str, str]]:
    rows = [(task_name(task, weights), _row_of(scores)) for task, scores in zero_shot(latest).items()]
    for task in dict.fromkeys(r.task for r in latest if r.what == "recall_at_1" and r.task != "validation"):
        found = {record.what: record for record in latest if record.task == task}
        mean = found["recall_at_1"]
        parts = [f"recall@1 {with_interval(mean.value, mean.low, mean.high)}"]
        parts += [
            f"{name} {percent(found[what].value)}"
            for name, what in (("text", "image_to_text_recall_at_1"), ("image", "text_to_image_recall_at_1"))
            if what in found
        ]
        rows.append((task_name(task, weights), f"{'  '.join(parts)}  (n={mean.n or 0:,})"))
    if pairs := validation(latest):
        n = next(record.n for record in latest if record.task == "validation") or 0
        losses = [f"{what} {value:.3f}" for what, value in pairs.items() if what.startswith("val_loss")]
        recalls = [f"recall@1 {percent(pairs['recall_at_1'])}"] if "recall_at_1" in pairs else []
        rows.append((task_name("validation", weights), f"{'  '.join(losses + recalls)}  (n={n:,})"))
    return rows


def _row_of(scores: Mapping[str, Any]) -> str:
    """A task's numbers, with the interval of its accuracy, or of its own metric where it has no accuracy."""
    own = [what for what in OWN_METRICS if what in scores]
    parts = [f"{what} {percent(scores[what])}" for what in own]
    if "acc1" in scores:
        further = [f"{name} {percent(scores[what])}" for what, name in _FURTHER.items() if what in scores]
        parts = [f"top-1 {with_interval(scores['acc1'], scores['low'], scores['high'])}", *further, *parts]
    else:
        parts[0] = f"{own[0]} {with_interval(scores[own[0]], scores['low'], scores['high'])}"
    chance = "" if scores["chance"] is None else f", chance {percent(scores['chance'])}"
    return f"{'  '.join(parts)}  (n={scores['n']:,}{chance})"


def values(records: Sequence[Record], what: str) -> list[float]:
    """The values of one quantity of training, in order."""
    return [record.value for record in records if record.what == what and not record.task]


def last_value(records: Sequence[Record], what: str) -> float | None:
    """The last value of a quantity of training; None without any."""
    return (values(records, what) or [None])[-1]  # type: ignore[list-item]


def median(records: Sequence[Record], what: str) -> float | None:
    """The median of a quantity of training; None without any."""
    found = values(records, what)
    return statistics.median(found) if found else None


def mean(records: Sequence[Record], what: str) -> float | None:
    """The mean of a quantity of training over logged intervals; None without any."""
    found = values(records, what)
    return statistics.fmean(found) if found else None


def largest(records: Sequence[Record], what: str) -> float | None:
    """The largest value of a quantity of training; None without any."""
    return max(values(records, what), default=None)


def _shown(value: float | None, form: Any) -> str:
    return "not measured" if value is None else form(value)
