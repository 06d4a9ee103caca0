"""Detects spikes of the loss and of the gradient norm by the median and median absolute deviation of earlier steps.

Neither moves much when a few of the values that they are computed from are far off, as mean and variance do (Huber,
"Robust Statistics", 1981, chapter 5), and a loss that falls smoothly lies below its own median. Only values above it
are spikes.
"""

from collections import deque
from typing import Any

import numpy as np

# Lower bound of the deviation as a share of the median: a loss that hardly changes has one near 0.
LEAST_DEVIATION = 1e-3


class SpikeDetector:
    """Classifies the finite steps of a run in order, by their loss and gradient norm.

    No step is a spike before `window` steps are recorded. Spikes are not recorded: a loss that stays high stays one.
    Steps of another phase of the run are dropped, since their losses are of another task.
    """

    def __init__(self, threshold: float, window: int, limit: int) -> None:
        """Args.

        threshold: median absolute deviations above the median from which on a value is a spike.
        window: ordinary steps that both are computed from.
        limit: spikes in a row that are a divergence.
        """
        self.threshold, self.limit = threshold, limit
        self._phase = 0
        self._ordinary: deque[tuple[float, float]] = deque(maxlen=window)

    def is_spike(self, loss: float, gradient_norm: float, phase: int = 0) -> bool:
        """Classifies a step; an ordinary one is recorded for later comparisons.

        Args: phase: of the step: where it begins.
        """
        if phase != self._phase:
            self._phase = phase
            self._ordinary.clear()
        if len(self._ordinary) == self._ordinary.maxlen:
            seen = np.array(self._ordinary)
            median = np.median(seen, axis=0)
            deviation = np.maximum(np.median(np.abs(seen - median), axis=0), LEAST_DEVIATION * np.abs(median))
            if (np.array([loss, gradient_norm]) > median + self.threshold * deviation).any():
                return True
        self._ordinary.append((loss, gradient_norm))
        return False

    def state_dict(self) -> dict[str, Any]:
        """Loss and norm of the steps that are compared with, and their phase."""
        return {"phase": self._phase, "ordinary": [list(step) for step in self._ordinary]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state."""
        self._phase = state["phase"]
        self._ordinary.clear()
        self._ordinary.extend((loss, norm) for loss, norm in state["ordinary"])
