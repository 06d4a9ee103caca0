"""Evaluation during training: evaluators at a cadence in samples, and at the end of the run.

Whether an evaluation is due follows from the samples seen before and after a step, so a resumed run evaluates where
the uninterrupted one would. Put it before the callback that writes checkpoints: a run killed between the two then
resumes from before the evaluation and repeats it, instead of missing it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, Trainer

from clip_lightning.model.clip import CLIP
from clip_lightning.records import EMA, Record
from clip_lightning.tokenizer import Tokenizer
from clip_lightning.training.clip_module import ClipModule


class Evaluator(Protocol):
    """What gives records of a model, the same on every rank."""

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        """Measures the model as it is, and leaves it and every random state as they were."""


class ZeroShotCallback(Callback):
    """Runs evaluators on every rank and hands their records to a sink on rank 0; with the average of weights as well.

    Attributes:
        seconds: time spent in evaluation so far, to be left out of throughput.
        latest: the records of the newest evaluation, without those of time.
    """

    def __init__(
        self,
        evaluators: Sequence[Evaluator],
        tokenizer: Tokenizer,
        sink: Callable[[list[Record]], None],
        *,
        every: int,
        total_samples: int,
    ) -> None:
        """Args.

        every: samples between evaluations; 0: only at the end.
        total_samples: of the whole run; one that stops before it is not evaluated at its end.
        """
        self.evaluators, self.tokenizer, self.sink = evaluators, tokenizer, sink
        self.every, self.total_samples = every, total_samples
        self.seconds = 0.0
        self.latest: list[Record] = []
        self._samples_before = 0
        self._evaluated_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
        """Remembers where this part of the run begins."""
        self._samples_before = pl_module.samples_seen

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ClipModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluates when the step went past a multiple of `every`."""
        before, self._samples_before = self._samples_before, pl_module.samples_seen
        if self.every and before // self.every < pl_module.samples_seen // self.every:
            self.evaluate(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
        """Evaluates a run that is complete."""
        if pl_module.samples_seen >= self.total_samples:
            self.evaluate(pl_module)

    def evaluate(self, pl_module: ClipModule) -> list[Record]:
        """Evaluates now, unless this many samples were evaluated last; returns the newest records."""
        if self._evaluated_at == pl_module.samples_seen:
            return self.latest
        start = time.perf_counter()
        measured = self._measure(pl_module)
        if pl_module.averaged is not None:
            with pl_module.averaged.in_place():
                measured += [replace(record, weights=EMA) for record in self._measure(pl_module)]
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.latest = [replace(record, samples_seen=pl_module.samples_seen) for record in measured]
        self._evaluated_at = pl_module.samples_seen
        if pl_module.global_rank == 0:
            spent = Record(what="evaluation_seconds", value=seconds, samples_seen=pl_module.samples_seen)
            self.sink([*self.latest, spent])
        return self.latest

    def _measure(self, pl_module: ClipModule) -> list[Record]:
        return [
            record
            for evaluator in self.evaluators
            for record in evaluator.run(pl_module.model, self.tokenizer, pl_module.device)
        ]
