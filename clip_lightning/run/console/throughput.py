"""Measures a run while it trains: means of an interval, throughput, waits for data, FLOP/s, memory.

Nothing is read from the device between two logged lines; time spent in evaluation and saving is left out of throughput.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

from clip_lightning.config.phases import phase_at
from clip_lightning.data.datamodule import Batch, ContrastiveDataModule
from clip_lightning.records import Record
from clip_lightning.run.console.progress import Interval
from clip_lightning.run.hardware import peak_memory_gib
from clip_lightning.training.clip_module import ClipModule

_SHOWN_IDS = 16  # of a batch, in an error


@dataclass(frozen=True)
class Costs:
    """What one sample costs, and the peak of the hardware.

    Attributes:
        training_flops: forward and backward of both towers, for texts [phases, 3] as in `Plan.training_flops`.
        peak_flops: of all ranks' devices together, FLOP/s; None where it is not known.
    """

    training_flops: Callable[[Sequence[Sequence[float]]], float]
    peak_flops: float | None


class Throughput(Callback):
    """Reports an `Interval` and records every `every` samples, and at the end of training; the first of the callbacks.

    Attributes:
        seconds: of the run so far, all starts together, evaluation and saving included.
    """

    def __init__(
        self,
        sink: Callable[[Interval, list[Record]], None],
        datamodule: ContrastiveDataModule,
        costs: Costs,
        *,
        every: int,
        pauses: Callable[[], float],
        seconds_before: float = 0.0,
    ) -> None:
        """Args.

        sink: is called on rank 0.
        pauses: seconds so far of evaluation and saving, when training pauses.
        seconds_before: of earlier starts, up to the checkpoint that was resumed.
        """
        self.sink, self.datamodule, self.costs, self.every, self.pauses = sink, datamodule, costs, every, pauses
        self.seconds = seconds_before
        self._before = seconds_before
        self._begun = self._interval_begun = self._batch_ended = 0.0
        self._sums, self._steps = torch.zeros(2), 0
        self._begun_at = self._samples_before = self._interval_samples = 0
        self._batch: Batch | None = None
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The sums of the interval that has begun: a checkpoint keeps them, so that its row covers all its steps."""
        return {"sums": self._sums, "steps": self._steps} if self._steps else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the interval of the checkpoint."""
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
        """Starts the clocks."""
        self._begun = time.perf_counter()
        self._begun_at = self._samples_before = pl_module.samples_seen
        self._begin_interval(pl_module)
        if self._restored:
            self._sums += self._restored["sums"].to(self._sums)
            self._steps = self._restored["steps"]

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ClipModule, batch: Batch, batch_idx: int
    ) -> None:
        """Counts the wait for this batch."""
        self._batch = batch
        self._waited += self._clock() - self._batch_ended

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ClipModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Adds up this step; reports when it passed a multiple of `every`."""
        step = pl_module.last_step
        self._sums += torch.stack([step.loss.detach().float().reshape(()), step.accuracy.detach().float().reshape(())])
        self._steps += 1
        self._cut += batch.num_cut
        before, self._samples_before = self._samples_before, pl_module.samples_seen
        phase = pl_module.phases.index(phase_at(pl_module.phases, before))
        self._texts[phase] += (pl_module.lengths_on_host.double() ** torch.arange(3)[:, None]).sum(1)
        if before // self.every < pl_module.samples_seen // self.every:
            self._report(pl_module)
        self._batch_ended = self._clock()

    def on_train_end(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
        """Reports the rest of an interval, and keeps its sums for the checkpoint that a later start resumes."""
        if self._steps:
            sums, steps = self._sums, self._steps
            self._report(pl_module)
            self._sums, self._steps = sums, steps

    def on_exception(self, trainer: Trainer, pl_module: ClipModule, exception: BaseException) -> None:  # type: ignore[override]
        """Adds to an error's traceback where this rank was in the data."""
        if self._batch is not None:
            ids = self._batch.sample_ids.tolist()
            shown = f"{ids[:_SHOWN_IDS]}{f' and {len(ids) - _SHOWN_IDS:,} more' * (len(ids) > _SHOWN_IDS)}"
            exception.add_note(
                f"rank {pl_module.global_rank}, {pl_module.samples_seen} samples seen, sample ids {shown}"
            )

    def elapsed(self) -> float:
        """Seconds of the run until now, all starts together."""
        return self._before + time.perf_counter() - self._begun if self._begun else self._before

    def _report(self, module: ClipModule) -> None:
        step = module.last_step
        module.guard.flush()  # reading the numbers below waits for the device anyway
        counts = torch.tensor([self._cut, self.datamodule.num_new_bad_samples], dtype=torch.float64)
        counts = torch.cat([counts, self._texts.flatten()]).to(self._sums.device)
        numbers = torch.cat([self._sums.double() / self._steps, counts])
        if dist.is_initialized():
            dist.all_reduce(numbers)
            numbers[:2] /= dist.get_world_size()
        loss, accuracy, cut, new_bad = numbers[:4].tolist()
        if new_bad:  # on any rank
            self.datamodule.exchange_bad_samples()
        texts = numbers[4:].reshape(-1, 3).tolist()
        seconds = self._clock() - self._interval_begun
        per_second = (module.samples_seen - self._interval_samples) / seconds
        flops = self.costs.training_flops(texts) / seconds
        self.seconds = self.elapsed()
        total = module.lengths.total
        pace = (module.samples_seen - self._begun_at) / max(self.seconds - self._before, 1e-9)
        interval = Interval(
            samples_seen=module.samples_seen,
            total_samples=total,
            loss=loss,
            logit_scale=float(step.logit_scale),
            learning_rate=float(step.learning_rate),
            gradient_norm=float(step.gradient_norm),
            samples_per_second=per_second,
            data_wait=self._waited / seconds,
            flops_per_second=flops,
            mfu=flops / self.costs.peak_flops if self.costs.peak_flops else None,
            seconds_left=(total - module.samples_seen) / pace,
        )
        if module.global_rank == 0:
            further = {
                "accuracy": accuracy,
                "cut_captions": cut / max(sum(num for num, *_ in texts), 1),
                "bad_samples": float(self.datamodule.bad_samples.total()),
                "skipped_steps": module.guard.num_skipped,
                "memory_gib": peak_memory_gib(module.device),
                "seconds": self.seconds,
            }
            further |= {"logit_bias": float(step.logit_bias)} if step.logit_bias is not None else {}
            self.sink(interval, _records(interval, further))
        self._begin_interval(module)

    def _begin_interval(self, module: ClipModule) -> None:
        self._interval_begun = self._batch_ended = self._clock()
        self._interval_samples = module.samples_seen
        self._sums = torch.zeros(2, device=module.device)
        # Of this rank's captions by phase: sums of 1, of their tokens, and of the squares of their tokens.
        self._texts = torch.zeros(len(module.phases), 3, dtype=torch.float64)
        self._steps = self._cut = 0
        self._waited = 0.0

    def _clock(self) -> float:
        """Seconds without those of pauses."""
        return time.perf_counter() - self.pauses()


def _records(interval: Interval, further: dict[str, float]) -> list[Record]:
    shown = ("loss", "gradient_norm", "learning_rate", "logit_scale", "samples_per_second", "data_wait")
    values = {name: getattr(interval, name) for name in (*shown, "flops_per_second", "mfu")} | further
    return [
        Record(what=what, value=float(value), split="train", samples_seen=interval.samples_seen)
        for what, value in values.items()
        if value is not None
    ]
