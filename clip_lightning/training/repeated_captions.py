"""Reports at the start of a run how many captions of a batch occur more than once.

Two pairs with one caption are negatives of each other: no model can tell them apart, and the loss has a floor. It is
counted on the first batch of a start, from the token ids that are there anyway.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from clip_lightning.data.batches import Batch
from clip_lightning.distributed import all_gather
from clip_lightning.training.clip_module import ClipModule

# Share of repeated captions from which on it is reported.
LIMIT = 0.5


class Repeats(NamedTuple):
    """Of a global batch: pairs, the share whose caption occurs more than once, and the smallest possible loss, nats."""

    num_pairs: int
    share: float
    smallest_loss: float


def count_repeats(tokens_BL: Tensor, lengths_B: Tensor) -> Repeats:
    """Counts equal captions over all ranks; to be called on every rank with its share of a batch.

    A softmax over m pairs of one caption is at best uniform over them, so the loss of each is at least ln m.
    """
    rows = zip(tokens_BL.cpu().numpy(), lengths_B.cpu().numpy(), strict=True)
    digests = [hashlib.sha256(row[:length].tobytes()).digest()[:8] for row, length in rows]
    own = torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests], device=tokens_BL.device)
    _, group, counts = np.unique(all_gather(own).cpu().numpy(), return_inverse=True, return_counts=True)
    of_pair = counts[group]
    return Repeats(len(of_pair), float((of_pair > 1).mean()), float(np.log(of_pair).mean()))


class RepeatedCaptions(Callback):
    """Passes a sentence to `report` on rank 0 where most captions of the first batch are repeated."""

    def __init__(self, report: Callable[[str], None]) -> None:
        """Args: report: prints a line."""
        self.report = report
        self._is_counted = False

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ClipModule, batch: Any, batch_idx: int
    ) -> None:
        """Counts the first batch of a fit, unless the loss takes equal captions as positives."""
        if self._is_counted or not isinstance(batch, Batch) or pl_module.config.loss.duplicates == "positives":
            return
        self._is_counted = True
        found = count_repeats(batch.tokens, batch.lengths)
        if found.share >= LIMIT and pl_module.global_rank == 0:
            self.report(
                f"warning: {found.share:.0%} of the {found.num_pairs:,} captions of the first batch occur more than "
                f"once; pairs with equal captions are negatives of each other, so the loss stays above "
                f"{found.smallest_loss:.2f}; use data with more different captions, or loss.duplicates=positives"
            )
