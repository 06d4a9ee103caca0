"""How long a checkpoint stops training: copied and written in the background, against written at once.

    python -m experiments.benchmarks.checkpoint --quick --json checkpoint.json

ViT-B/32 with AdamW's two moments, float32, on the folder's own disk (`--folder`), synced and checked by its sums. Both
sides end with the same files. In the background the write still takes a core's time from training.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from clip_lightning.config import compose
from clip_lightning.errors import run_command
from clip_lightning.model.clip import build_clip
from clip_lightning.reliability.background import Background
from clip_lightning.reliability.checkpoint import CheckpointFolder
from clip_lightning.reliability.shards import on_host
from clip_lightning.training.optimizer import build_optimizer
from experiments.benchmarks.alternation import Row, parser, run


def state() -> dict[str, Any]:
    """Weights and moments as a run has them."""
    config = compose.load("train", ["model=vit_b32", "data=cc12m", "compute=openclip_cc12m"], check=False)
    clip = build_clip(config.model, config.loss)
    optimizer = build_optimizer(clip, config.optimizer, 1e-5)
    for parameter in clip.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {"weights": clip.state_dict(), "training": optimizer.state_dict()}


def rows(settings: argparse.Namespace) -> Iterator[Row]:
    """One comparison; more is better, so each side is one over its seconds."""
    parts, rounds = state(), 3 if settings.quick else 9
    stalls: dict[str, list[float]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory(dir=settings.folder) as place:
        folder = CheckpointFolder(Path(place), keep_last=1)
        for number in range(2 * rounds):
            begin = time.perf_counter()
            if number % 2:
                assert folder.save(number, parts, {})
                stalls["theirs"].append(time.perf_counter() - begin)
            else:
                copy = on_host(parts)
                writing = Background(lambda number=number, copy=copy: folder.save(number, copy, {}))
                stalls["ours"].append(time.perf_counter() - begin)
                assert writing.result()
    ours, theirs = (statistics.median(seconds) for seconds in stalls.values())
    yield Row("vit_b32_stall", 1 / ours, 1 / theirs, rounds, f"{ours:.2f} against {theirs:.2f} s", "1/s")


def main() -> None:
    """Prints and writes the ratio."""
    found = parser("Stall of a background save against a synchronous one.")
    found.add_argument("--folder", type=Path, metavar="DIR", help="disk to write to instead of the temporary one")
    run("experiments.benchmarks.checkpoint", found, lambda settings: {"stall": partial(rows, settings)})


if __name__ == "__main__":
    run_command(main)
