"""The charts of a report as plain data: series over samples, over FLOPs and over hours. `report.js` draws them.

Values are those of the records: fractions of 1, seconds, nats. Axes show percent where a chart says so.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from clip_lightning.formatting import percent
from clip_lightning.records import EMA
from clip_lightning.report.read import RunFiles
from clip_lightning.score_names import OWN_METRICS

# A series keeps at most so many points: a screen is not wider.
MOST_POINTS = 1500
HEALTH = "representation"


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title, unit: of the chart and of its y axis.
        about: what a reader needs to know to read it, one sentence.
        series: as `report.js` takes them.
        levels: horizontal lines, such as chance: value and name.
        is_share: values are fractions; the axis shows percent.
        is_log: whether the y axis is logarithmic.
    """

    title: str
    unit: str
    about: str = ""
    series: list[dict[str, Any]] = field(default_factory=list)
    levels: list[tuple[float, str]] = field(default_factory=list)
    is_share: bool = False
    is_log: bool = False

    def latest(self) -> str:
        """The last value of every series in a sentence: the chart for readers who do not see it."""
        shown = percent if self.is_share else "{:.4g}".format
        parts = [f"{one['label']} {shown(one['y'][-1])}" for one in self.series if one["y"][-1] is not None]
        return "; ".join([*parts, *(f"{name} {shown(value)}" for value, name in self.levels)])


@dataclass(frozen=True)
class Section:
    """Charts under one heading."""

    title: str
    charts: list[Chart]


def sections(runs: Sequence[RunFiles]) -> list[Section]:
    """All charts that the records of the runs allow."""
    axes = [Axes.of(run) for run in runs]
    found = [
        Section("Loss", list(_losses(runs, axes))),
        Section("Zero-shot accuracy", list(_zero_shot(runs, axes))),
        Section("Retrieval", list(_retrieval(runs, axes))),
        Section("Optimization", list(_of_training(runs, axes, _OPTIMIZATION))),
        Section("Speed and memory", list(_of_training(runs, axes, _SPEED))),
        Section("Representation health", list(_health(runs, axes))),
    ]
    return [section for section in found if section.charts]


@dataclass(frozen=True)
class Axes:
    """A run's FLOPs and hours by samples seen, at the samples where it logged.

    FLOPs are those of the towers' forward and backward passes, added up over the logged intervals: FLOP/s over
    samples/s, times samples. Hours are those of the run, evaluation and saving included, all starts together.
    """

    samples: np.ndarray
    flops: np.ndarray
    hours: np.ndarray

    @classmethod
    def of(cls, run: RunFiles) -> "Axes":
        """The axes of one run."""
        names = ("samples_per_second", "flops_per_second", "seconds")
        columns = [run.training(what).set_index("samples_seen").value for what in names]
        table = pd.concat(dict(zip(names, columns, strict=True)), axis=1).dropna().sort_index()
        samples = table.index.to_numpy(dtype=float)
        steps = np.diff(samples, prepend=0.0)
        flops = np.cumsum(table.flops_per_second.to_numpy() / table.samples_per_second.to_numpy() * steps)
        return cls(np.append(0.0, samples), np.append(0.0, flops), np.append(0.0, table.seconds.to_numpy() / 3600))

    @property
    def total_flops(self) -> float:
        """Of the whole run so far."""
        return float(self.flops[-1])

    def at(self, samples: np.ndarray) -> dict[str, list[float | None]]:
        """The three axes at these samples; between two logged intervals on the line that joins them."""
        if len(self.samples) < 2:
            return {"samples": samples.tolist()}
        return {
            "samples": samples.tolist(),
            "flops": _plain(np.interp(samples, self.samples, self.flops)),
            "hours": _plain(np.interp(samples, self.samples, self.hours)),
        }


def _series(
    run: int, axes: Axes, rows: pd.DataFrame, name: str, label: str, dash: str = "solid", points: bool = False
) -> dict[str, Any]:
    """One curve of one run. Args: name: within the run, empty for the only one; points: markers and intervals."""
    rows = rows.iloc[:: max(1, math.ceil(len(rows) / MOST_POINTS))] if not points else rows
    series = {
        "run": run,
        "name": name,
        "label": label,
        "dash": dash,
        "points": points,
        "x": axes.at(rows.samples_seen.to_numpy(dtype=float)),
        "y": _plain(rows.value),
    }
    if points and rows.low.notna().all() and rows.high.notna().all():
        series |= {"low": _plain(rows.low), "high": _plain(rows.high)}
    return series


def _plain(values: Iterable[float]) -> list[float | None]:
    """JSON has no NaN and infinity: a gap in the curve."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]


def _label(runs: Sequence[RunFiles], run: int, name: str, quantity: str) -> str:
    """The name of a curve in a legend: within one run what it shows, among several the run it is of."""
    return (name or quantity) if len(runs) == 1 else " ".join(part for part in (runs[run].label, name) if part)


def _losses(runs: Sequence[RunFiles], axes: Sequence[Axes]) -> Iterator[Chart]:
    series, guessing = [], dict[str, float]()
    for k, run in enumerate(runs):
        rows = run.training("loss")
        if len(rows):
            series.append(_series(k, axes[k], rows, "", _label(runs, k, "", "loss")))
            batch = run.config["compute"]["global_batch"]
            if run.config["loss"]["name"] == "softmax":
                guessing[f"guessing in a batch of {batch:,}"] = math.log(batch)
    if series:
        about = "Mean over each logged interval. It depends on the batch: curves of runs with one batch compare."
        yield Chart("Training loss", "nats", about, series, [(value, name) for name, value in guessing.items()])
    names = [str(what) for run in runs for what in run.records.what if str(what).startswith("val_loss_")]
    for what in dict.fromkeys(names):
        candidates = f"{int(what.removeprefix('val_loss_')):,} candidates"
        series, levels, _ = _measured(runs, axes, "validation", what, "loss", "guessing")
        about = f"Of held-out pairs among {candidates}, whatever the batch; bars are 95 % intervals."
        yield Chart(f"Validation loss, {candidates}", "nats", about, series, levels)


# What is shown of a classification; the first that a task has is its curve.
ZERO_SHOT = {"acc1": "top-1", "acc5": "top-5", "mean_per_class": "mean per class"} | {
    what: what for what in OWN_METRICS
}


def tasks_of(runs: Sequence[RunFiles], quantities: Iterable[str]) -> dict[str, str]:
    """The tasks that any run has one of the quantities of, each with the first of them."""
    found: dict[str, str] = {}
    for what in quantities:
        for run in runs:
            for task in run.tasks(what):
                found.setdefault(task, what)
    return found


def _zero_shot(runs: Sequence[RunFiles], axes: Sequence[Axes]) -> Iterator[Chart]:
    for task, what in tasks_of(runs, ZERO_SHOT).items():
        yield _scores(runs, axes, task, what, task, ZERO_SHOT[what])


def _retrieval(runs: Sequence[RunFiles], axes: Sequence[Axes]) -> Iterator[Chart]:
    for task in tasks_of(runs, ["recall_at_1"]):
        of = "held-out pairs" if task == "validation" else task
        yield _scores(runs, axes, task, "recall_at_1", f"Recall at 1: {of}, mean of both directions", "recall")


def _scores(runs: Sequence[RunFiles], axes: Sequence[Axes], task: str, what: str, title: str, unit: str) -> Chart:
    """A score with its intervals and chance; n in the sentence below."""
    series, levels, n = _measured(runs, axes, task, what, unit, "chance")
    about = f"n = {n:,}; bars are 95 % intervals." if n else ""
    return Chart(title, unit, about, series, levels, is_share=True)


def _measured(
    runs: Sequence[RunFiles], axes: Sequence[Axes], task: str, what: str, quantity: str, guessing: str
) -> tuple[list[dict[str, Any]], list[tuple[float, str]], int]:
    """The curves of a quantity of evaluations for both kinds of weights, the level of guessing, and the newest n."""
    series, levels, n = [], list[tuple[float, str]](), 0
    for k, run in enumerate(runs):
        for weights in ("", EMA):
            rows = run.measured(task, what, weights)
            if len(rows):
                name = weights and "averaged weights"
                dash = "dot" if weights else "solid"
                series.append(_series(k, axes[k], rows, name, _label(runs, k, name, quantity), dash, points=True))
                chances, counts = rows.chance.dropna(), rows.n.dropna()
                levels = [(float(chances.iloc[-1]), guessing)] if len(chances) else levels
                n = int(counts.iloc[-1]) if len(counts) else n
    return series, levels, n


_OPTIMIZATION = (
    (
        "logit_scale",
        Chart("Logit scale", "factor of the cosines", "At its limit of 100 the softmax is at its sharpest."),
    ),
    ("logit_bias", Chart("Logit bias", "added to the logits")),
    ("gradient_norm", Chart("Gradient norm", "before clipping", "Of the last step of each interval.", is_log=True)),
    ("learning_rate", Chart("Learning rate", "per step")),
    ("accuracy", Chart("Accuracy within the batch", "image to text, top-1", is_share=True)),
    ("skipped_steps", Chart("Skipped steps", "steps so far", "Steps whose loss or gradient was not finite.")),
)
_SPEED = (
    ("samples_per_second", Chart("Throughput", "samples per second", "Without evaluation and saving.")),
    ("data_wait", Chart("Wait for data", "share of training time", is_share=True)),
    ("mfu", Chart("Model FLOPs utilization", "share of the peak", is_share=True)),
    ("flops_per_second", Chart("FLOP/s of the towers", "FLOP/s, all ranks")),
    ("memory_gib", Chart("Peak memory", "GiB per process")),
)  # fmt: skip


def _of_training(
    runs: Sequence[RunFiles], axes: Sequence[Axes], charts: Sequence[tuple[str, Chart]]
) -> Iterator[Chart]:  # fmt: skip
    for what, chart in charts:
        series = []
        for k, run in enumerate(runs):
            rows = run.training(what)
            if len(rows) and (what != "skipped_steps" or rows.value.max() > 0):
                series.append(_series(k, axes[k], rows, "", _label(runs, k, "", chart.title)))
        if series:
            yield Chart(chart.title, chart.unit, chart.about, series, [], chart.is_share, chart.is_log)


_HEALTH = (
    (("rankme_image", "rankme_text"), "RankMe", "effective dimensions",
     "Effective rank of the features (Garrido et al. 2023); a fall while the loss falls is a collapse.", False),
    (("modality_gap",), "Modality gap", "distance",
     "Between the mean image and the mean text feature (Liang et al. 2022); 0 would be no gap.", False),
    (("alignment",), "Alignment", "squared distance",
     "Of matching pairs (Wang and Isola 2020); smaller is better, 2 is unrelated.", False),
    (("uniformity_image", "uniformity_text"), "Uniformity", "log of a mean potential",
     "Wang and Isola 2020; smaller is more uniform, 0 is one point.", False),
    (("dead_image", "dead_text"), "Dead directions", "share of directions",
     "Directions along which features hardly vary; they are not used.", True),
)  # fmt: skip


def _health(runs: Sequence[RunFiles], axes: Sequence[Axes]) -> Iterator[Chart]:
    for names, title, unit, about, is_share in _HEALTH:
        series = []
        for k, run in enumerate(runs):
            for what in names:
                rows = run.measured(HEALTH, what)
                if len(rows):
                    name = what.rpartition("_")[2] if len(names) > 1 else ""
                    dash = "dot" if name == "text" else "solid"
                    label = _label(runs, k, name, title.lower())
                    series.append(_series(k, axes[k], rows, name, label, dash, points=True))
        if series:
            yield Chart(title, unit, about, series, is_share=is_share)
