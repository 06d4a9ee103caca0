"""A training step on made-up pairs, to see that it works, how long it takes and what it holds: a dry run's proof.

It is the run's own module in the run's precision, on one device, with at most so many pairs as are done in seconds.
"""

import copy
import math
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, Dataset

from clip_lightning import compat
from clip_lightning.config.phases import phases_of
from clip_lightning.config.schema import Config
from clip_lightning.data.batches import Batch
from clip_lightning.model.flops import count_flops
from clip_lightning.run.hardware import Device, main_memory, peak_memory_gib, uses_gpu
from clip_lightning.run.plan.memory import estimate_memory, pairs_of_rank
from clip_lightning.run.plan.preflight import Plan, build_on_meta
from clip_lightning.run.trainer import trainer_arguments
from clip_lightning.training.clip_module import ClipModule

# A step on a CPU is given so many FLOPs, half a minute of two cores at 30 GFLOP/s; on a GPU it is whole.
_CPU_FLOPS = 1e12
_MOST_STEPS, _ENOUGH_SECONDS = 4, 5.0
# What the count of memory did.
INSTEAD = "forward and backward pass were done on fake tensors instead"


@dataclass(frozen=True)
class StepBenchmark:
    """A step that was done.

    Attributes:
        pairs: in it; `pieces` micro-batches.
        seconds: of the fastest step.
        flops_per_second: of the model, forward and backward.
        memory_gib: of the GPU; on a CPU by how much the process grew.
    """

    pairs: int
    pieces: int
    seconds: float
    flops_per_second: float
    memory_gib: float
    loss: float


def benchmark_step(config: Config, found: Plan, device: Device) -> StepBenchmark | str:
    """Tries a step, or says in a few words why it was left out."""
    if not device.is_here:
        return f"not tried: the device is not here; {INSTEAD}"
    flops = found.training_of(count_flops(config.model, config.loss))
    small, pieces = _on_one_device(config, flops)
    pairs = small.compute.global_batch
    phases = phases_of(small, total_samples=found.lengths.total, epoch_samples=found.epoch_samples)
    needed = estimate_memory(small, build_on_meta(small), phases).total
    free = torch.cuda.mem_get_info()[0] if uses_gpu(config.cluster.accelerator) else main_memory("MemAvailable")
    if needed > free:
        return (
            f"not tried: {pairs} pairs need {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free here; "
            f"{INSTEAD}"
        )
    before = resident_gib()
    module = ClipModule(small, found.lengths)
    clock = _Clock()
    with TemporaryDirectory() as folder:
        trainer = Trainer(callbacks=[clock], logger=False, **trainer_arguments(small, found.lengths, Path(folder)))
        compat.disable_signal_handling(trainer)
        try:
            trainer.fit(module, train_dataloaders=DataLoader(_Repeated(_fake_batch(small)), batch_size=None))
        except torch.OutOfMemoryError:
            return f"tried, and {pairs:,} pairs need more memory than is free; write a smaller cluster.micro_batch"
        memory = peak_memory_gib(trainer.strategy.root_device)
    loss = float(module.last_step.loss)
    if not math.isfinite(loss):
        return f"tried, and the loss of random pairs is {loss}"
    seconds = min(clock.seconds)
    on_cpu = trainer.strategy.root_device.type == "cpu"
    return StepBenchmark(pairs, pieces, seconds, flops * pairs / seconds, max(0.0, memory - before * on_cpu), loss)


def resident_gib() -> float:
    """Main memory that this process holds now, GiB."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize() / 2**30


class _Repeated(Dataset[Batch]):
    """One batch, some times."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return _MOST_STEPS

    def __getitem__(self, index: int) -> Batch:
        return self.batch


class _Clock(Callback):
    """Times steps until they are enough."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts the clock when the device is idle."""
        _wait(pl_module)
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stops it when the device is done."""
        _wait(pl_module)
        self.seconds.append(time.perf_counter() - self._begun)
        # The first step is slower, and the optimizer's state stands only after it.
        trainer.should_stop = len(self.seconds) > 1 and sum(self.seconds) > _ENOUGH_SECONDS


def _wait(module: ClipModule) -> None:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)


def _on_one_device(config: Config, flops: float) -> tuple[Config, int]:
    """The config of the benchmark, and of how many micro-batches it is: two where the run accumulates them."""
    small = copy.deepcopy(config)
    share, micro_batch = pairs_of_rank(config)
    pieces = 1 if micro_batch == share else 2
    if not uses_gpu(config.cluster.accelerator):
        micro_batch = min(micro_batch, max(2, int(_CPU_FLOPS / flops) // pieces))
    small.compute.global_batch = pieces * micro_batch
    small.compute.batch_norm_samples = min(config.compute.batch_norm_samples, micro_batch)
    small.compute.phases = []
    small.cluster.nodes = small.cluster.devices = 1
    small.cluster.strategy = "single"
    small.cluster.micro_batch = micro_batch if pieces > 1 else None
    small.trainer, small.callbacks = {}, {}
    return small, pieces


def _fake_batch(config: Config) -> Batch:
    """Random pixels, and random tokens that fill the context."""
    pairs, size, length = config.compute.global_batch, config.model.vision.image_size, config.model.text.context_length
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (pairs, 3, size, size), dtype=torch.uint8, generator=draw)
    tokens = torch.randint(3, config.model.text.tokenizer.vocab_size, (pairs, length), generator=draw)
    ids = torch.arange(pairs)
    return Batch(
        images.contiguous(memory_format=torch.channels_last), tokens, torch.full((pairs,), length), ids, ids, 0
    )
