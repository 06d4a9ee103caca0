"""Memory of a rank: FSDP2 against DDP, which keeps the whole model on every rank as open_clip does.

    python -m experiments.benchmarks.memory --quick --json memory.json

Real local processes, float32, one optimizer step on two pairs each. Bytes of weights, gradients and AdamW's
two moments are read from the tensors; the peak is the process's resident memory beyond what it had before the model.
"""

import argparse
import ctypes
import json
import os
import resource
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from clip_lightning.config import compose
from clip_lightning.errors import run_command
from clip_lightning.loss import SoftmaxLoss
from clip_lightning.model.clip import build_clip
from clip_lightning.parallel import fsdp
from clip_lightning.training.optimizer import build_optimizer
from experiments.benchmarks.alternation import Row, parser, run

PAIRS = 2
MODELS = {
    "vit_b32": ["model=vit_b32"],
    "convnext_base_distilbert": ["model=pair", "model/vision=convnext_base", "model/text=distilbert"],
}
M_MMAP_THRESHOLD = -3  # glibc: what is larger is given back when it is freed, and not kept for later
KINDS = ("weights", "gradients", "optimizer", "peak")


def own_bytes(tensors: Iterable[Tensor]) -> int:
    """What these tensors take on this rank."""
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)


def resident_bytes() -> int:
    """The most memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_rank(rank: int, world: int, folder: str, model: str, strategy: str) -> None:
    """One step; rank 0 writes what it holds."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18)
    warnings.filterwarnings("ignore", message="Grad strides")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    config = compose.load("train", [*MODELS[model], "data=cc12m", "compute=openclip_cc12m"], check=False)
    before = resident_bytes()
    clip = build_clip(config.model, config.loss)
    spread: Any = clip
    if strategy == "fsdp":
        fsdp.apply(clip, init_device_mesh("cpu", (world,)))
    else:
        spread = nn.parallel.DistributedDataParallel(clip, gradient_as_bucket_view=True)
    optimizer = build_optimizer(clip, config.optimizer, 1e-5)
    size, length = config.model.vision.image_size, config.model.text.context_length
    images, tokens = torch.rand(PAIRS, 3, size, size), torch.randint(1, 1000, (PAIRS, length))
    SoftmaxLoss(config.loss.chunk)(*spread(images, tokens, torch.full((PAIRS,), length))).loss.backward()
    gradients = own_bytes(p.grad for p in clip.parameters() if p.grad is not None)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    if rank == 0:
        found = own_bytes(clip.parameters()), gradients, own_bytes(moments), resident_bytes() - before
        (Path(folder) / "bytes.json").write_text(json.dumps(dict(zip(KINDS, found, strict=True))))
    dist.barrier()
    dist.destroy_process_group()


def measure(world: int, model: str, strategy: str) -> dict[str, int]:
    """Bytes on rank 0 by kind."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, folder, model, strategy)
        torch.multiprocessing.start_processes(run_rank, arguments, nprocs=world, start_method="fork")
        return dict(json.loads((Path(folder) / "bytes.json").read_text()))


def rows(settings: argparse.Namespace, model: str) -> Iterator[Row]:
    """The comparisons of one model; more is better, so each side is one over its MiB."""
    for world in (2, 4) if settings.quick else (2, 4, 8):
        whole, sharded = (measure(world, model, strategy) for strategy in ("ddp", "fsdp"))
        for kind in KINDS:
            note = f"{sharded[kind] / 2**20:,.0f} against {whole[kind] / 2**20:,.0f} MiB"
            rates = 2**20 / sharded[kind], 2**20 / whole[kind]
            yield Row(f"{model}_{world}_{kind}", *rates, rounds=1, note=note, unit="1/MiB")


def main() -> None:
    """Prints and writes the ratios."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    flags = parser("Memory of a rank under FSDP2 against DDP.")
    run(
        "experiments.benchmarks.memory",
        flags,
        lambda settings: {name: partial(rows, settings, name) for name in MODELS},
    )


if __name__ == "__main__":
    run_command(main)
