"""Run by test_shards.py: ranks that shard a model's state, save it, and lay out what others saved.

python -m tests.reliability.shards_program WORLD SHARD_SIZE FOLDER save|load
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from clip_lightning.reliability.checkpoint import CheckpointFolder, shard_name
from clip_lightning.reliability.optimizer_state import optimizer_laid_out
from clip_lightning.reliability.rank_group import RankGroup
from clip_lightning.reliability.shards import laid_out, on_host, own_rows


def model_and_optimizer(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Layers whose rows do not divide by the ranks, and fewer rows than ranks."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def shard(model: nn.Module, world: int, size: int) -> torch.optim.Optimizer:
    if world > 1:
        mesh = init_device_mesh("cpu", (world // size, size), mesh_dim_names=("replicate", "shard"))
        fully_shard(model, mesh=mesh if size < world else mesh["shard"])
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"weights": model.state_dict(), "optimizer": optimizer.state_dict(), "seen": 5}


def run_rank(rank: int, world: int, size: int, folder: str, what: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        store = Path(folder) / f"rendezvous-{world}-{size}-{what}"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    checkpoints = CheckpointFolder(Path(folder) / "checkpoints", keep_last=9)
    model, _ = model_and_optimizer(seed=0 if what == "save" else 1)
    optimizer = shard(model, world, size)
    if what == "load":
        found = checkpoints.newest()
        assert found is not None
        saved = found.saved("state")
        own = model.state_dict()
        model.load_state_dict({name: laid_out(value, own[name]) for name, value in saved["weights"].items()})
        optimizer.load_state_dict(optimizer_laid_out(saved["optimizer"], optimizer))
    for step in range(2):
        optimizer.zero_grad()
        model(torch.full((3, 6), 1.0 + step)).sum().backward()
        optimizer.step()
    state = state_of(model, optimizer)
    if rank == 0:
        parts = {"state": on_host(state)}
    else:
        place, rows = own_rows(state)
        parts = {shard_name("state", place): rows} if rows else {}
    number = 1 if what == "save" else 100 * world + size
    assert checkpoints.save(number, parts, {}, RankGroup.connected()) is not None
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    number_of_ranks, shard_size = int(sys.argv[1]), int(sys.argv[2])
    torch.multiprocessing.start_processes(
        run_rank,
        (number_of_ranks, shard_size, sys.argv[3], sys.argv[4]),
        nprocs=number_of_ranks,
        start_method="fork",
    )
