"""What a run does when its guard finds a divergence: stop and save the sample ids, or roll back and skip the samples.

It rolls back to the newest checkpoint before the steps that decided, less a margin, and trains again to that place,
which gives the same bits; from there it reads the samples behind them, plus the margin (PaLM, arXiv 2204.02311, section
5.1: restarted about 100 steps before a spike, skipped 200 to 500 batches; such a spike came from data and weights
together, and did not appear again with other data). Learning rate and length of the run follow the samples that are
trained on, without those skipped. All of it is a function of the steps alone, so that a run which is killed at any time
ends alike.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.distributed as dist

from clip_lightning.config.schema import ComputeConfig
from clip_lightning.data.order.skip_windows import SkipWindow, positions_of
from clip_lightning.distributed import exchange, rank_and_world
from clip_lightning.reliability.checkpoint_callback import CheckpointCallback
from clip_lightning.reliability.nan_guard import DivergenceError

FILE_NAME = "divergence.jsonl"


class Rollback(NamedTuple):
    """What the next fit begins with.

    Attributes:
        samples_seen: of the checkpoint that it resumes; 0 without one.
        windows: that the run skips, the new one among them.
        line: a summary for the console.
    """

    samples_seen: int
    windows: tuple[SkipWindow, ...]
    line: str


def roll_back(
    divergence: DivergenceError,
    before: tuple[SkipWindow, ...],
    compute: ComputeConfig,
    margin: int,
    checkpoint: CheckpointCallback,
    path: Path,
) -> Rollback:
    """Records the divergence, and prepares the next fit. To be called on every rank.

    Args:
        before: windows that are skipped already.
        margin: samples to skip before and after the steps themselves.
        checkpoint: restores the next fit.
        path: the run's directory.
    Raises: DivergenceError, with the file's name and a fix, where the run is to stop.
    """
    rolls_back = compute.on_divergence == "rollback" and len(before) < compute.rollback_limit
    samples = [
        max(0, divergence.steps[0].samples_seen - margin),
        divergence.steps[-1].samples_seen + compute.global_batch + margin,
    ]
    window = SkipWindow(samples[0], *positions_of(np.array(samples, np.int64), before).tolist())
    _write(path / FILE_NAME, divergence, window if rolls_back else None)
    what = divergence.problems[0]
    if not rolls_back:
        fix = "skip them with compute.on_divergence=rollback"
        if compute.on_divergence == "rollback":
            what = f"{what}, after compute.rollback_limit={compute.rollback_limit} rollbacks"
            fix = "allow more rollbacks"
        raise DivergenceError(
            f"{what}; the sample ids are in {path / FILE_NAME}: look at them, lower compute.learning_rate, set "
            f"compute.gradient_clip=1.0, or {fix}",
            divergence.steps,
        )
    place = checkpoint.go_back(window.samples_seen)
    line = (
        f"rollback {len(before) + 1} of {compute.rollback_limit} to {place:,} samples: {what}; skips the "
        f"{window.end - window.begin:,} samples from position {window.begin:,} on (ids of those steps in {FILE_NAME})"
    )
    return Rollback(place, (*before, window), line)


def _write(path: Path, divergence: DivergenceError, window: SkipWindow | None) -> None:
    """Adds a line: the steps with their numbers and the sample ids of all ranks, in the order of the global batch."""
    own = [None if step.sample_ids is None else step.sample_ids.tolist() for step in divergence.steps]
    of_ranks = exchange(own)
    if rank_and_world()[0] == 0:
        steps = [
            {
                "samples_seen": step.samples_seen,
                "skipped": step.is_skipped,
                "loss": _plain(step.loss),
                "gradient_norm": _plain(step.gradient_norm),
                "sample_ids": None if None in ids else [one for share in ids for one in share or []],
            }
            for step, ids in zip(divergence.steps, zip(*of_ranks, strict=True), strict=True)
        ]
        line = {"problem": divergence.problems[0], "skip_windows": window and window[1:], "steps": steps}
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
    if dist.is_initialized():
        dist.barrier()  # a rank that exits with an error ends the others


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
