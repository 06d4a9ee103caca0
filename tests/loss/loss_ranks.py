"""Run by test_loss_parity.py: W ranks compute every case of one global batch and rank 0 saves the combined results.

The features' gradients of a rank are W times those of the global loss, since DDP takes the mean over ranks.
"""

import inspect
import itertools
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from clip_lightning.loss import LOSSES, needs_pair_keys, needs_teacher, sigmoid

NUM_PAIRS, WIDTH = 24, 16
CHUNKS = (1024, 8, 5)  # one piece, even pieces, a ragged last piece
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHARED = {"duplicates": "positives"}  # options of the losses that can share targets
SHARING = [name for name in LOSSES if "duplicates" in inspect.signature(LOSSES[name]).parameters]


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


def pair_keys(loss: torch.nn.Module, share: slice = slice(None)) -> dict[str, Tensor]:
    """Keys of captions and images where a loss shares targets: every fifth caption and every seventh image repeat."""
    if not needs_pair_keys(loss):
        return {}
    number = torch.arange(NUM_PAIRS)
    captions = torch.where(number % 5 == 0, -7, number * 2**40)
    images = torch.where(number % 7 == 3, 3, number)
    return {"pair_keys": torch.stack([captions, images], dim=1)[share]}


def case(
    name: str, chunk: int, dtype: torch.dtype, rank: int, world: int, options: dict[str, str]
) -> dict[str, Tensor]:
    """Loss, accuracy and gradients of the global batch, combined over the ranks."""
    share = slice(rank * NUM_PAIRS // world, (rank + 1) * NUM_PAIRS // world)
    batch = global_batch(dtype)
    for key in ("image", "text"):
        batch[key] = batch[key][share]
    leaves = {key: value.clone().requires_grad_() for key, value in batch.items()}
    loss = LOSSES[name](chunk=chunk, **options)
    output = loss(*leaves.values(), **teachers(name, dtype, share), **pair_keys(loss, share))
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
    results = {}
    for name, chunk, (label, dtype) in itertools.product(LOSSES, CHUNKS, DTYPES.items()):
        results[f"{name}-{chunk}-{label}"] = case(name, chunk, dtype, rank, world, {})
    for name, chunk in itertools.product(SHARING, CHUNKS):
        results[f"{name}-{chunk}-shared"] = case(name, chunk, torch.float32, rank, world, SHARED)
    sigmoid.GROUP = 8  # several groups of texts
    for chunk in CHUNKS:
        results[f"sigmoid-{chunk}-groups"] = case("sigmoid", chunk, torch.float32, rank, world, {})
        results[f"sigmoid-{chunk}-shared-groups"] = case("sigmoid", chunk, torch.float32, rank, world, SHARED)
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    world, folder = int(sys.argv[1]), sys.argv[2]
    torch.multiprocessing.start_processes(main, (world, folder), nprocs=world, start_method="fork")
