"""Two ranks, one of which meets no number: `python -m tests.training.skipping_program FOLDER STRATEGY`.

Saves every rank's state after each step, the losses, and how many steps were skipped.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from clip_lightning.config.lengths import Lengths
from clip_lightning.data.batches import Batch
from clip_lightning.parallel import strategy
from clip_lightning.parallel.fsdp import full_tensor
from tests.support.small_run import GLOBAL_BATCH, Recorder, Stream, _Started, config_with_batch_norm, fit

STEPS, POISONED = 5, 2


class Watched(Recorder):
    """Rank 1's third batch has an image that is no number; the state after each step is kept."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        images = batch.images.float() / 255
        if (self.global_rank, batch_idx) == (1, POISONED):
            images[3, 0, 0, 0] = torch.nan
        super().training_step(batch._replace(images=images), batch_idx)
        self.kept = [*getattr(self, "kept", []), self._state()]

    def _state(self) -> dict[str, Tensor]:
        """Weights, scale and batch statistics, their average, and what the optimizer keeps of each."""
        assert self.ema is not None
        found = dict(self.model.state_dict())
        found |= {f"average {name}": value for name, value in self.ema.average.items()}
        for number, kept in self.trainer.optimizers[0].state_dict()["state"].items():
            found |= {f"optimizer {number} {name}": value for name, value in kept.items()}
        return {name: full_tensor(value.detach()).clone() for name, value in found.items()}


def run_rank(rank: int, folder: str, name: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    config = config_with_batch_norm(GLOBAL_BATCH // 2)
    config.compute.ema_decay = 0.9
    config.cluster.strategy, config.cluster.devices = name, 2
    spread: Any = strategy.build(config.cluster)
    spread.cluster_environment = _Started(rank, 2)
    module = Watched(config, Lengths(STEPS * GLOBAL_BATCH, 40))
    fit(module, Stream(0, STEPS), spread, devices=2)
    found = {
        "states": module.kept,
        "losses": torch.stack([step.loss for step in module.steps]),
        "num_skipped": module.guard.num_skipped,
    }
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.start_processes(run_rank, (sys.argv[1], sys.argv[2]), nprocs=2, start_method="fork")
