"""Random choices that depend on one integer only, cheap enough to be made some dozens of times per image."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
UNIFORMS = 96  # more than a scene asks for


class Dice:
    """A stream of choices, the same on every machine and in every process for the same `key` and `stream`.

    Counter-based (Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), so that neighbouring
    keys are independent and none has to be skipped.
    """

    def __init__(self, key: int, stream: int) -> None:
        """Args: key: what is drawn. stream: what for (training, a task); streams never share a draw."""
        self.generator = np.random.Generator(np.random.Philox(key=np.array([key, stream], np.uint64)))
        self._uniforms = iter(self.generator.random(UNIFORMS).tolist())

    def between(self, low: float, high: float) -> float:
        """A number, uniform in [low, high)."""
        return low + (high - low) * next(self._uniforms)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return next(self._uniforms) < probability

    def index(self, n: int) -> int:
        """A whole number, uniform in [0, n)."""
        return int(n * next(self._uniforms))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely."""
        return options[int(len(options) * next(self._uniforms))]
