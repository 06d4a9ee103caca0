"""What the phases of a run save: a step on fewer patches, on smaller images and shorter texts, against a step in full.

    python -m experiments.benchmarks.phases --quick --json phases.json

One run of one model (ViT-S/16, bf16, captions of COCO's lengths) whose phases take turns step by step; the first turn
is left out. CPU seconds of one thread (seconds of the device on a GPU), medians. What a phase costs in accuracy is not
asked.
"""

import argparse
import logging
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from clip_lightning.config.lengths import Lengths
from clip_lightning.config.phases import phase_at
from clip_lightning.config.schema import ClusterConfig, ComputeConfig, Config, OptimizerConfig, PhaseConfig
from clip_lightning.data.batches import Batch
from clip_lightning.errors import run_command
from clip_lightning.model.named import load
from clip_lightning.training.clip_module import ClipModule
from experiments.benchmarks.alternation import Row, parser, run
from experiments.benchmarks.train_step import BETA2, DEVICE, END, EPS, WEIGHT_DECAY, Case, clock, draw

MODEL = "vit_s16"
TURN: dict[str, dict[str, Any]] = {
    "full": {},
    "patch_dropout_half": {"patch_dropout": 0.5},
    "image_size_half": {"image_size": 112},
    "both_and_16_tokens": {"image_size": 112, "patch_dropout": 0.5, "context_length": 16},
}


class Phased(IterableDataset[Batch]):
    """Batches as the loader gives them in the phase of their step."""

    def __init__(self, module: ClipModule, case: Case, num_steps: int) -> None:
        self.module, self.case, self.num_steps = module, case, num_steps

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.num_steps):
            batch, phase = draw(self.case, step), phase_at(self.module.phases, step * self.case.batch)
            lengths = batch.lengths.clamp(max=phase.context_length)
            tokens = batch.tokens[:, : min(phase.context_length, -(-int(lengths.max()) // 8) * 8)].clone()
            tokens[torch.arange(len(tokens)), lengths - 1] = END
            images = batch.images[:, :, : phase.image_size, : phase.image_size]
            images = images.contiguous(memory_format=torch.channels_last)
            yield batch._replace(images=images, tokens=tokens, lengths=lengths)

    def __len__(self) -> int:
        return self.num_steps


class _Clock(Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.begin = clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds.append(clock() - self.begin)


def rows(settings: argparse.Namespace) -> Iterator[Row]:
    """Each part of a turn against the one in full."""
    turns = 4 if settings.quick else 9
    num_steps, names = turns * len(TURN), list(TURN)
    model, loss = load(MODEL)
    listed = [PhaseConfig(f"{step} steps", **TURN[names[step % len(names)]]) for step in range(1, num_steps)]
    compute = ComputeConfig(
        name="benchmark",
        duration=f"{num_steps} steps",
        global_batch=settings.batch,
        learning_rate=1e-5,
        schedule="constant",
        phases=listed,
    )
    optimizer = OptimizerConfig(beta2=BETA2, eps=EPS, weight_decay=WEIGHT_DECAY)
    config = Config(
        model=model, compute=compute, optimizer=optimizer, loss=loss, cluster=ClusterConfig(name="benchmark")
    )
    samples = num_steps * settings.batch
    module, times = ClipModule(config, Lengths(samples, samples)), _Clock()
    trainer = Trainer(
        accelerator=DEVICE.type, devices=1, max_epochs=1, callbacks=[times], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    case = Case(MODEL, "bf16", settings.batch)
    trainer.fit(module, DataLoader(Phased(module, case, num_steps), batch_size=None))
    rates = {
        name: settings.batch / statistics.median(times.seconds[k + len(names) :: len(names)])
        for k, name in enumerate(names)
    }
    for name in names[1:]:
        yield Row(name, rates[name], rates["full"], rounds=turns - 1, note=f"batch {settings.batch}")


def main() -> None:
    """Prints and writes the ratios; here "theirs" is the step in full."""
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
    flags = parser("Steps of a phase against a step in full (the column `theirs`).")
    flags.add_argument("--batch", type=int, default=32, help="pairs in a step")
    run("experiments.benchmarks.phases", flags, lambda settings: {"phases": partial(rows, settings)})


if __name__ == "__main__":
    run_command(main)
