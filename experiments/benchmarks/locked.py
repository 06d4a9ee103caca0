"""A LiT run (a locked image tower beside a text tower that learns) with `cluster.cache_locked` against one without.

    python -m experiments.benchmarks.locked --quick --json locked.json

Each side is `train.py` itself, from tars of photographs near 500 x 375 to the last step: decoding, hashing of the
images and the cache file included. Images are not augmented, which `cache_locked` requires. CPU seconds of the command
and its loader processes. `run` compares whole runs without their start, `later_epochs` the epochs after the first,
which no cache can save.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import timm
from safetensors.torch import save_file

from experiments.benchmarks.alternation import Row, parser, report
from experiments.benchmarks.data import photographs, write_shards

BATCH, SHARDS = 32, 2


def command(folder: Path, size: int, steps: int, *, cached: bool) -> list[str]:
    """`python train.py ...` of ViT-S/16 and a text tower of 12 layers, 384 wide."""
    still = ["crop_scale=[1.0,1.0]", "crop_ratio=[1.0,1.0]"]
    return [
        sys.executable, "train.py", "model=pair", "model/vision=vit_small_patch16", "model/text=laion_384",
        f"model.vision.image_size={size}", "model.vision.locked=true",
        f"model.vision.pretrained={folder / 'vision.safetensors'}", "data=webdataset",
        f"data.path={folder / 'tars'}", "data.validation.num_samples=0", *(f"data.augment.{one}" for one in still),
        "compute=cpu_minutes", f"compute.duration={steps} steps", "compute.warmup=0 steps",
        f"compute.global_batch={BATCH}", f"cluster.cache_locked={str(cached).lower()}", "cluster.workers=1",
        "cluster.threads=1", "eval=none", "logger=none", f"runs={folder / f'{size}-{steps}-{cached}'}",
    ]  # fmt: skip


def cpu_seconds(arguments: list[str]) -> float:
    """CPU time of a command and of all processes that it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rows(settings: argparse.Namespace) -> Iterator[Row]:
    """Two comparisons for each image size."""
    per_epoch, epochs = (128, 5) if settings.quick else (512, 10)
    steps = per_epoch // BATCH
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        weights = timm.create_model("vit_small_patch16_224").state_dict()
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / "vision.safetensors")
        write_shards(folder / "tars", photographs(64, None, 90), SHARDS, per_epoch // SHARDS)
        for size in (112, 224):
            start, first = (cpu_seconds(command(folder, size, number, cached=False)) for number in (1, steps + 1))
            seconds = {one: cpu_seconds(command(folder, size, epochs * steps, cached=one)) for one in (True, False)}
            notes = f"{seconds[True]:.0f} and {seconds[False]:.0f} CPU s, {start:.0f} s of it the start and a step"
            for name, spent in (("run", start), ("later_epochs", first)):
                samples = BATCH * (epochs * steps - (1 if name == "run" else steps + 1))
                rates = (samples / (seconds[one] - spent) for one in (True, False))
                yield Row(f"{name}_{size}px", *rates, rounds=1, note=f"{epochs} epochs of {per_epoch}; {notes}")


def main() -> None:
    """Prints and writes the ratios."""
    settings = parser("A LiT run with kept features of the locked tower, and without.").parse_args()
    report(rows(settings), settings.json)


if __name__ == "__main__":
    main()
