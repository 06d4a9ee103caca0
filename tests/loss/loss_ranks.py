"""Run by test_loss_parity.py: W ranks compute every case of one global batch and rank 0 saves what they give together.

The features' gradients of a rank are W times those of the global loss, since DDP takes the mean over ranks.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from clip_lightning.loss import LOSSES, needs_teacher

NUM_PAIRS, WIDTH = 24, 16
CHUNKS = (1024, 8, 5)  # one piece, even pieces, a ragged last piece
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def global_batch(dtype: torch.dtype) -> dict[str, Tensor]:
    """Features, scale and bias of the global batch; image 3 is nearest to another pair's text."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, NUM_PAIRS, WIDTH, generator=generator, dtype=torch.float64)
    text = text + image / 2
    image[3] = text[7]
    normalise = torch.nn.functional.normalize
    values = {"image": normalise(image, dim=1), "text": normalise(text, dim=1)}
    values |= {"scale": torch.tensor([14.0], dtype=torch.float64), "bias": torch.tensor([-3.0], dtype=torch.float64)}
    return {name: value.to(dtype) for name, value in values.items()}


def teachers(name: str, dtype: torch.dtype, share: slice = slice(None)) -> dict[str, Tensor]:
    """What a loss with a teacher takes besides: features of another width and another scale."""
    if not needs_teacher(LOSSES[name]):
        return {}
    generator = torch.Generator().manual_seed(1)
    image, text = torch.randn(2, NUM_PAIRS, WIDTH // 2, generator=generator, dtype=torch.float64)
    features = {"teacher_image": image, "teacher_text": text + image}
    found = {key: torch.nn.functional.normalize(value, dim=1)[share] for key, value in features.items()}
    return {key: value.to(dtype) for key, value in {**found, "teacher_scale": torch.tensor([9.0])}.items()}


def case(name: str, chunk: int, dtype: torch.dtype, rank: int, world: int) -> dict[str, Tensor]:
    """Loss, accuracy and gradients of the global batch, put together from the ranks'."""
    share = slice(rank * NUM_PAIRS // world, (rank + 1) * NUM_PAIRS // world)
    batch = global_batch(dtype)
    for key in ("image", "text"):
        batch[key] = batch[key][share]
    leaves = {key: value.clone().requires_grad_() for key, value in batch.items()}
    output = LOSSES[name](chunk=chunk)(*leaves.values(), **teachers(name, dtype, share))
    output.loss.backward()
    found = {"loss": output.loss.detach(), "accuracy": output.accuracy}
    for key, leaf in leaves.items():
        found[key] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    if world == 1:
        return found
    for key in ("loss", "scale", "bias"):
        dist.all_reduce(found[key])
        found[key] /= world
    for key in ("image", "text"):
        gathered = [torch.empty_like(found[key]) for _ in range(world)]
        dist.all_gather(gathered, found[key])
        found[key] = torch.cat(gathered) / world
    return found


def main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    results = {
        f"{name}-{chunk}-{dtype}": case(name, chunk, DTYPES[dtype], rank, world)
        for name in LOSSES
        for chunk in CHUNKS
        for dtype in DTYPES
    }
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    world, folder = int(sys.argv[1]), sys.argv[2]
    torch.multiprocessing.start_processes(main, (world, folder), nprocs=world, start_method="fork")
