"""The numbers of a run that is perhaps still running, for a table: its best score and its seconds. Imports no torch."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

# Default metric: the first of these that a run has.
_USUAL = ("acc1", "val_loss_1024", "loss")


@dataclass(frozen=True)
class Curve:
    """One run's records of the weights it trains, by quantity and samples seen; not those of their average.

    Attributes:
        seconds: of training so far; None before the first line.
        values: (task, quantity) -> samples seen -> value.
    """

    seconds: float | None = None
    values: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Curve":
        """Of a run's metrics.jsonl; empty without one. A line that is still being written is left out."""
        values: dict[tuple[str, str], dict[int, float]] = {}
        for row in _lines(path):
            if row.get("weights"):
                continue
            key = row.get("task", ""), row["what"]
            values.setdefault(key, {})[row.get("samples_seen", 0)] = float(row["value"])
        seconds = values.get(("", "seconds"), {})
        return cls(seconds[max(seconds)] if seconds else None, values)

    def usual_metric(self) -> str | None:
        """The first of acc1, val_loss_1024 and loss that this run has."""
        names = {what for _, what in self.values}
        return next((name for name in _USUAL if name in names), None)

    def best(self, metric: str) -> float | None:
        """The best value so far, the least of a loss and the largest of others; None without any.

        Args:
            metric: TASK/WHAT, or WHAT: the mean over the tasks that have it.
        """
        task, _, what = metric.rpartition("/")
        found = [points for (of, name), points in self.values.items() if name == what and task in ("", of)]
        if not found:
            return None
        whole = set.intersection(*(set(points) for points in found))
        means = [fmean(points[samples] for points in found) for samples in whole]
        better = min if "loss" in what else max
        return better((mean for mean in means if not math.isnan(mean)), default=None)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)
