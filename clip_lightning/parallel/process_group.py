"""Time-outs of collectives, and a record of them that shows which rank hangs.

A rank that waits longer than its time-out ends the run with an error instead of blocking the nodes. The first step
may take longer: ranks index data, compile, and connect.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from clip_lightning import compat

FIRST_STEP_TIMEOUT = timedelta(minutes=30)
NUM_RECORDED = 2000  # newest collectives of each rank, a few hundred bytes each


class CollectiveTimeout(Callback):
    """After the first step, no collective may take longer than `minutes`."""

    def __init__(self, minutes: float) -> None:
        self.timeout = timedelta(minutes=minutes)
        self._is_set = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shortens the time-out of every group but that of checkpoints, whose ranks wait for disks."""
        if self._is_set or not dist.is_initialized():
            return
        for group in compat.process_groups():
            if group.group_desc != "checkpoint":
                dist.set_timeout(self.timeout, group)
        self._is_set = True


def record_collectives(folder: Path) -> None:
    """Turns NCCL's flight recorder on: a collective that times out leaves `nccl_<rank>` in `folder`.

    Call it before the process group is made. Variables that are set already keep their values; without NCCL nothing
    changes. Read the files with `python -m torch.distributed.flight_recorder.fr_trace`.
    """
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(NUM_RECORDED))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / "nccl_"))
