"""Steps without a finite loss and gradient: the optimizer skips them on the device; here they are counted.

The host learns of a step's flag some steps later, when the device has long computed it, so that no step waits for it.
Every rank reads the same flags at the same step and stops at the same step.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from clip_lightning.errors import UserError

DELAY = 4  # steps between a flag's step and its reading


class _Flag(NamedTuple):
    flag: Tensor
    copied: torch.cuda.Event | None
    samples_seen: int
    sample_ids: Tensor


class NanGuard:
    """Counts skipped steps.

    Attributes:
        num_skipped: steps skipped so far, those of the last `DELAY` steps not yet among them.
        in_a_row: how many of them at the end.
    """

    def __init__(self, limit: int) -> None:
        """Args: limit: skipped steps in a row at which `record` raises."""
        self.limit = limit
        self.num_skipped = self.in_a_row = 0
        self._waiting: deque[_Flag] = deque()

    def record(self, is_skipped: Tensor, samples_seen: int, sample_ids: Tensor) -> None:
        """Takes a step's flag.

        Args:
            is_skipped: [] or [1], any number type, on any device, equal on all ranks.
            samples_seen: before the step.
            sample_ids: int64 [b], of this rank.
        Raises: UserError at the limit, with the first sample ids of the last skipped step.
        """
        copied = None
        flag = is_skipped.detach()
        if flag.is_cuda:
            flag = torch.empty_like(flag, device="cpu", pin_memory=True).copy_(flag, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._waiting.append(_Flag(flag, copied, samples_seen, sample_ids))
        if len(self._waiting) > DELAY:
            self._read(self._waiting.popleft())

    def flush(self) -> None:
        """Reads what still waits; before a checkpoint and at the end. Raises as `record` does."""
        while self._waiting:
            self._read(self._waiting.popleft())

    def _read(self, step: _Flag) -> None:
        if step.copied is not None:
            step.copied.synchronize()
        if not step.flag.item():
            self.in_a_row = 0
            return
        self.num_skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            ids = ", ".join(str(sample) for sample in step.sample_ids[:8].tolist())
            raise UserError(
                f"compute.nonfinite_limit={self.limit}: the loss or its gradient was not finite in {self.in_a_row} "
                f"steps in a row, up to the one after {step.samples_seen:,} samples (sample ids {ids}, ...); "
                "lower compute.learning_rate, set compute.gradient_clip=1.0, or look at these samples"
            )
