"""Ranks that train four steps in one go, and two and two: `python -m tests.parallel.resume_program WORLD FOLDER`.

Rank 0 saves, for every case, the weights of both.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from clip_lightning.config.schema import Config
from clip_lightning.parallel import strategy
from tests.support.small_run import Recorder, Stream, _Started, config_with_batch_norm, fit, small_config, small_module

STEPS, MIDDLE = 4, 2
CASES = ("plain", "cached", "locked", "batch_norm")


class Continue(Callback):
    """Begins a fit with another's state."""

    def __init__(self, state: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
        self.state = state

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights, optimizer, module = self.state
        pl_module.load_state_dict(weights)
        trainer.optimizers[0].load_state_dict(optimizer)
        pl_module.on_load_checkpoint(module)


def config_of(case: str) -> Config:
    config = config_with_batch_norm(group=2) if case == "batch_norm" else small_config()
    config.cluster.micro_batch = 4 if case == "cached" else None
    config.model.vision.locked = case == "locked"
    return config


def train(config: Config, rank: int, world: int, first: int, last: int, *callbacks: Callback) -> tuple[Recorder, Any]:
    config.cluster.strategy, config.cluster.devices = "ddp", world
    spread: Any = strategy.build(config.cluster)
    spread.cluster_environment = _Started(rank, world)
    module = small_module(config)
    fit(module, Stream(first, last), spread, devices=world, callbacks=list(callbacks))
    return module, module.trainer.optimizers[0].state_dict()


def run_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    found: dict[str, list[dict[str, Tensor]]] = {}
    for case in CASES:
        in_one_go, _ = train(config_of(case), rank, world, 0, STEPS)
        half, optimizer = train(config_of(case), rank, world, 0, MIDDLE)
        kept: dict[str, Any] = {}
        half.on_save_checkpoint(kept)
        resumed, _ = train(config_of(case), rank, world, MIDDLE, STEPS, Continue((half.state_dict(), optimizer, kept)))
        found[case] = [module.model.state_dict() for module in (in_one_go, resumed)]
    if rank == 0:
        torch.save(found, Path(folder) / "weights.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    number, place = int(sys.argv[1]), sys.argv[2]
    torch.multiprocessing.start_processes(run_rank, (number, place), nprocs=number, start_method="fork")
