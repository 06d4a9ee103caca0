"""How often each test set is measured, so that evaluation takes no more than a share of a run (`eval.max_share`)."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_Item = TypeVar("_Item")


@dataclass
class EvaluationShare:
    """Decides once, after the first evaluation, that each item is measured at every `stride`-th evaluation.

    The decision depends on times, so it is recorded with the run, and a resumed run reads it. What an evaluation
    measures then is a pure function of the samples seen: item k at evaluation number j where (j + k) is a multiple of
    the stride, so that the items are spread evenly. The last evaluation of a run measures all.

    Attributes:
        max_share: of the run's time, evaluation included; 0: no limit.
        every, total: samples between evaluations, and of the whole run.
        stride: None until it is decided; more than there are evaluations left: only the last one measures.
    """

    max_share: float
    every: int
    total: int
    stride: int | None = None

    def __post_init__(self) -> None:
        self._begun, self._samples = time.perf_counter(), 0

    def begin(self, samples_seen: int) -> None:
        """Training begins here, or resumes."""
        self._begun, self._samples = time.perf_counter(), samples_seen

    def due(self, items: Sequence[_Item], samples_seen: int) -> list[_Item]:
        """The items that the evaluation at these samples measures."""
        if not self.stride or self.stride == 1:
            return list(items)
        number = samples_seen // self.every
        return [item for k, item in enumerate(items) if (number + k) % self.stride == 0]

    def decide(self, seconds: float, samples_seen: int, all_seconds: float) -> str:
        """Decides after an evaluation of all items, on the rank that decides; returns a sentence, empty for stride 1.

        Args:
            seconds: of this evaluation.
            all_seconds: of all evaluations of this start, which are no training.
        """
        trained = time.perf_counter() - self._begun - all_seconds
        if not self.max_share or not self.every or samples_seen <= self._samples:
            return ""
        training = trained * self.total / (samples_seen - self._samples)
        left = (self.total - 1) // self.every - samples_seen // self.every
        self.stride = stride_of(seconds, training, left, self.max_share)
        if self.stride == 1:
            return ""
        full = (left + 2) * seconds / ((left + 2) * seconds + training)
        rule = f"each is measured once in {self.stride} evaluations from now on, and all at the end"
        if self.stride > left:
            rule = "they are measured again at the end of the run alone"
        least = 2 * seconds / (2 * seconds + training)
        also = f"; the first and the last evaluation alone take {least:.1%}" if least > self.max_share else ""
        return (
            f"eval.max_share={self.max_share:g}: measuring all test sets takes {seconds:.1f} s, at every evaluation "
            f"{full:.1%} of the run; {rule}{also}"
        )


def stride_of(seconds: float, training: float, left: int, max_share: float) -> int:
    """The smallest stride that keeps evaluation within its share of the run's time.

    Args:
        seconds: of an evaluation of everything; the first one is over, and the last one has to come.
        training: seconds of training in the whole run.
        left: evaluations between the first and the last.
    """
    allowed = max_share / (1 - max_share) * training - 2 * seconds
    if allowed <= 0:
        return left + 1
    return min(left + 1, max(1, math.ceil(left * seconds / allowed)))
