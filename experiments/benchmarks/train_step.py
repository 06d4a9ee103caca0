"""The training step against open_clip 3.3.0's own model and its own step (open_clip_train.train.train_one_epoch).

    python -m experiments.benchmarks.train_step --quick --json train_step.json

Same weights, captions (of COCO's lengths: mean 14 tokens, 95 % under 20), batches and eager mode on both sides; theirs
as its command line sets it: AdamW unfused, 77 tokens. Beside it open_clip with fused AdamW, and full-length captions,
where there is nothing to cut. Sides take turns step by step; the first step, in which libraries allocate and choose
kernels, is reported apart. Two models are in memory at a time. CPU seconds of one thread (seconds of the device on a
GPU), medians.
"""

import argparse
import ctypes
import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from lightning.pytorch import Trainer
from open_clip.loss import ClipLoss
from open_clip_train.train import train_one_epoch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from clip_lightning.config.lengths import Lengths
from clip_lightning.config.schema import ClusterConfig, ComputeConfig, Config, OptimizerConfig
from clip_lightning.data.batches import Batch
from clip_lightning.errors import run_command
from clip_lightning.model.convert.open_clip import convert
from clip_lightning.model.named import load
from clip_lightning.training.clip_module import ClipModule
from experiments.benchmarks.alternation import Cases, Row, parser, run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LEARNING_RATE, BETA2, EPS, WEIGHT_DECAY = 1e-5, 0.98, 1e-6, 0.2
START, END, CONTEXT, PIXELS = 49406, 49407, 77, 224
M_MMAP_THRESHOLD = -3  # glibc: larger blocks are returned to the system when they are freed
PEERS = {"vit_b32": "ViT-B-32-quickgelu", "vit_s32": "ViT-S-32", "rn50": "RN50-quickgelu"}


@dataclass(frozen=True)
class Case:
    """One comparison: a named model, fp32 or bf16, whether captions fill the context, and the peer's AdamW."""

    model: str
    precision: str
    batch: int
    full_length: bool = False
    fused_peer: bool = False

    @property
    def name(self) -> str:
        """As in the ratios."""
        return f"{self.model}_{self.precision}{'_full_length' * self.full_length}{'_fused_peer' * self.fused_peer}"


@dataclass
class Times:
    """Seconds of each step of a side, and the losses."""

    seconds: list[float] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)

    def rate(self, batch: int) -> float:
        """Samples a second, the first step left out."""
        return batch / statistics.median(self.seconds[1:])


class Peer:
    """open_clip's model, trained by open_clip's step."""

    def __init__(self, case: Case) -> None:
        self.model = open_clip.create_model(PEERS[case.model], output_dict=True).to(DEVICE)
        named = list(self.model.named_parameters())
        without = [p for n, p in named if p.ndim < 2 or any(part in n for part in ("bn", "ln", "bias", "logit_scale"))]
        left_out = {id(p) for p in without}
        groups = [
            {"params": without, "weight_decay": 0.0},
            {"params": [p for _, p in named if id(p) not in left_out], "weight_decay": WEIGHT_DECAY},
        ]
        kind: dict[str, Any] = {"fused": True} if case.fused_peer else {}
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, BETA2), eps=EPS, **kind)
        self.times = Times()
        self.arguments = SimpleNamespace(
            device=str(DEVICE), precision={"bf16": "amp_bf16", "fp32": "fp32"}[case.precision], distill=False,
            accum_freq=1, skip_scheduler=True, horovod=False, grad_clip_norm=None, rank=0, local_rank=0,
            log_local=False, log_every_n_steps=1, world_size=1, batch_size=case.batch, wandb=False,
        )  # fmt: skip

    def step(self, images: Tensor, tokens: Tensor) -> None:
        """One epoch of one batch."""
        loader = _OneBatch((images, tokens))
        data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
        begin = clock()
        train_one_epoch(
            self.model, data, _NotedLoss(self.times.losses), 0, self.optimizer, None, None, None, self.arguments
        )
        self.times.seconds.append(clock() - begin)


class _NotedLoss(ClipLoss):
    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        self.values = values

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        losses = super().forward(*args, **kwargs)
        self.values.append(losses["contrastive_loss"].detach())
        return losses


class _OneBatch:
    """A loader of one batch, with the sizes that open_clip reads off it."""

    num_batches = 1

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.batch, self.num_samples = batch, len(batch[0])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.batch


class Turns(IterableDataset[Batch]):
    """Our batches; before each is returned, the peer has done its step on it."""

    def __init__(self, case: Case, peer: Peer, num_steps: int, mean: Tensor, std: Tensor) -> None:
        self.case, self.peer, self.num_steps, self.mean, self.std = case, peer, num_steps, mean, std

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.num_steps):
            batch = draw(self.case, number)
            images = (batch.images.float() / 255 - self.mean) / self.std  # their loader does this
            self.peer.step(images, batch.tokens)
            longest = -(-int(batch.lengths.max()) // 8) * 8  # our loader pads to the longest, in eights
            yield batch._replace(tokens=batch.tokens[:, : min(longest, CONTEXT)])

    def __len__(self) -> int:
        return self.num_steps


class _Timed(ClipModule):
    """A step is timed from before its batch goes to the device, as the peer's is."""

    times: Times

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        self.begin = clock()
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.times.seconds.append(clock() - self.begin)
        self.times.losses.append(self.last_step.loss)


def draw(case: Case, number: int) -> Batch:
    """A batch of noise with captions of COCO's lengths: 10 + a gamma distribution of mean 4."""
    torch.manual_seed(number)
    lengths = 10 + torch.distributions.Gamma(2.0, 0.5).sample((case.batch,)).round().long()
    lengths = torch.full_like(lengths, CONTEXT) if case.full_length else lengths.clamp(max=CONTEXT)
    tokens = torch.randint(1, START, (case.batch, CONTEXT))
    tokens[:, 0] = START
    tokens[torch.arange(case.batch), lengths - 1] = END
    tokens[torch.arange(CONTEXT) >= lengths[:, None]] = 0
    images = torch.randint(0, 256, (case.batch, 3, PIXELS, PIXELS), dtype=torch.uint8)
    positions = number * case.batch + torch.arange(case.batch)
    images = images.to(memory_format=torch.channels_last)  # as our loader gives them
    return Batch(images, tokens, lengths, positions, positions, 0)


def clock() -> float:
    """CPU seconds of this process, or seconds of the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def compare(case: Case, num_steps: int) -> Iterator[Row]:
    """Steps of both sides in turn."""
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18)
    model, loss = load(case.model)
    settings = ComputeConfig(
        name="benchmark",
        duration=f"{num_steps} steps",
        global_batch=case.batch,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        precision=case.precision,
    )
    config = Config(
        model=model,
        compute=settings,
        optimizer=OptimizerConfig(beta2=BETA2, eps=EPS, weight_decay=WEIGHT_DECAY),
        loss=loss,
        cluster=ClusterConfig(name="benchmark"),
    )
    samples = num_steps * case.batch
    module = _Timed(config, Lengths(samples, samples))
    peer = Peer(case)
    module.model.load_state_dict(convert(peer.model.state_dict()))
    times = module.times = Times()
    trainer = Trainer(
        accelerator=DEVICE.type, devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    turns = Turns(case, peer, num_steps, module.model.vision.mean.clone(), module.model.vision.std.clone())
    trainer.fit(module, DataLoader(turns, batch_size=None))
    note = (
        f"batch {case.batch}; first step {times.seconds[0]:.1f} and {peer.times.seconds[0]:.1f} s; "
        f"last loss {float(times.losses[-1]):.6f} and {float(peer.times.losses[-1]):.6f}"
    )
    yield Row(case.name, times.rate(case.batch), peer.times.rate(case.batch), rounds=num_steps - 1, note=note)


def cases(settings: argparse.Namespace) -> Cases:
    """All comparisons."""
    batch, num_steps = settings.batch, 3 if settings.quick else 8
    listed = []
    for model in PEERS:
        listed += [Case(model, "bf16", batch), Case(model, "bf16", batch, fused_peer=True)]
    listed += [Case("vit_b32", "fp32", batch), Case("vit_b32", "bf16", batch, full_length=True)]
    if not settings.quick:
        listed += [Case(model, "bf16", batch, full_length=True) for model in ("vit_s32", "rn50")]
    return {case.name: partial(compare, case, num_steps) for case in listed}


def main() -> None:
    """Prints and writes the ratios."""
    flags = parser("The training step against open_clip's.")
    flags.add_argument("--batch", type=int, default=32, help="pairs in a step")
    run("experiments.benchmarks.train_step", flags, cases)


if __name__ == "__main__":
    run_command(main)
