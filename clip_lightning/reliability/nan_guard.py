"""Counts abnormal steps: those that are not finite, which the optimizer skips on the device, and spikes.

The host reads a step's numbers some steps later, when the device has computed them, so that no step waits. Every rank
reads the same numbers in the same order and makes the same decision.
"""

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_lightning.config.schema import ComputeConfig
from clip_lightning.errors import AgreedError
from clip_lightning.reliability.spike import SpikeDetector

DELAY = 4  # steps between a step's numbers and their reading
SEARCHING = 2.0  # state of a step that fp16's scale of the loss was too large for: skipped, and no divergence


class Step(NamedTuple):
    """An abnormal step.

    Attributes:
        samples_seen: before it.
        is_skipped: loss or gradient was not finite; otherwise it is a spike.
        sample_ids: int64 [b], of this rank; None for a step of before a restart.
    """

    samples_seen: int
    is_skipped: bool
    loss: float
    gradient_norm: float
    sample_ids: Tensor | None = None


class DivergenceError(AgreedError):
    """Too many abnormal steps in a row: `steps`, from the first to the one that decided."""

    def __init__(self, problem: str, steps: list[Step]) -> None:
        super().__init__(problem)
        self.steps = steps


class _Waiting(NamedTuple):
    numbers: Tensor
    copied: torch.cuda.Event | None
    samples_seen: int
    sample_ids: Tensor
    phase: int


class NanGuard:
    """Counts abnormal steps.

    Attributes:
        num_skipped: steps skipped so far, without those among the last `DELAY` steps.
        in_a_row: how many of the newest steps in a row.
        row: the newest abnormal steps in a row, spikes included.
    """

    def __init__(self, limit: int, spikes: SpikeDetector | None = None) -> None:
        """Args: limit: skipped steps in a row that are a divergence. spikes: None: spikes are not detected."""
        self.limit, self.spikes = limit, spikes
        self.num_skipped = self.in_a_row = 0
        self.row: list[Step] = []
        self._waiting: deque[_Waiting] = deque()

    def record(self, numbers: Tensor, samples_seen: int, sample_ids: Tensor, phase: int = 0) -> None:
        """Records a step's numbers.

        Args:
            numbers: [3], on any device, equal on all ranks: its state (0, 1 where it was skipped, or `SEARCHING`),
                loss, gradient norm.
            samples_seen: before the step.
            sample_ids: int64 [b], of this rank.
            phase: where the step's phase begins; a spike is one among its own phase.
        Raises: DivergenceError at a limit.
        """
        copied = None
        numbers = numbers.detach()
        if numbers.is_cuda:
            numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._waiting.append(_Waiting(numbers, copied, samples_seen, sample_ids, phase))
        if len(self._waiting) > DELAY:
            self._read(self._waiting.popleft())

    def flush(self) -> None:
        """Reads the numbers not yet read, before a checkpoint and at the end. Raises as `record` does."""
        while self._waiting:
            self._read(self._waiting.popleft())

    def is_in_doubt(self) -> bool:
        """Whether the newest steps are abnormal, and may become a divergence. Raises as `record` does."""
        self.flush()
        return bool(self.row)

    def state_dict(self) -> dict[str, Any]:
        """What decides about the next steps, in plain values."""
        return {
            "num_skipped": self.num_skipped,
            "in_a_row": self.in_a_row,
            "row": [list(step[:4]) for step in self.row],
            "spikes": self.spikes.state_dict() if self.spikes is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a saved state."""
        self.num_skipped, self.in_a_row = state["num_skipped"], state["in_a_row"]
        self.row = [Step(*step) for step in state["row"]]
        if self.spikes is not None and state["spikes"] is not None:
            self.spikes.load_state_dict(state["spikes"])

    def _read(self, waiting: _Waiting) -> None:
        if waiting.copied is not None:
            waiting.copied.synchronize()
        skipped, loss, norm = waiting.numbers.tolist()
        if skipped == SEARCHING:
            self.num_skipped += 1
            return
        is_spike = not skipped and self.spikes is not None and self.spikes.is_spike(loss, norm, waiting.phase)
        self.num_skipped += bool(skipped)
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if not skipped and not is_spike:
            self.row = []
            return
        self.row.append(Step(waiting.samples_seen, bool(skipped), loss, norm, waiting.sample_ids))
        num_spikes = len(self.row) - sum(step.is_skipped for step in self.row)
        if self.in_a_row >= self.limit:
            what = f"the loss or its gradient was not finite in {self.in_a_row} steps in a row"
            self._diverged(f"compute.nonfinite_limit={self.limit}: {what}")
        if self.spikes is not None and num_spikes >= self.spikes.limit:
            what = f"{num_spikes} spikes in a row, the last a loss of {loss:.4g} with a gradient norm of {norm:.4g}"
            self._diverged(f"compute.spike_limit={self.spikes.limit}: {what}")

    def _diverged(self, what: str) -> None:
        first, last = self.row[0].samples_seen, self.row[-1].samples_seen
        raise DivergenceError(f"{what}, from the step after {first:,} samples to the one after {last:,}", self.row)


def build_guard(compute: ComputeConfig) -> NanGuard:
    """The guard of a run."""
    spikes = None
    if compute.spike_threshold is not None:
        spikes = SpikeDetector(compute.spike_threshold, compute.spike_window, compute.spike_limit)
    return NanGuard(compute.nonfinite_limit, spikes)
