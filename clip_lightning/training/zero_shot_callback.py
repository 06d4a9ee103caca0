"""Evaluation during training: evaluators at a cadence in samples, and at the end of the run.

Whether an evaluation is due follows from the samples seen before and after a step, so a resumed run evaluates where
the uninterrupted one would. Put it after the callbacks that stop and that save: a run that is stopped, or killed in a
long evaluation, then keeps its step, and the next start runs the evaluation that was not recorded.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from pyarrow import Table

from clip_lightning.distributed import all_reduce_sum, exchange
from clip_lightning.evaluation.measure import Evaluator, measure, name_of
from clip_lightning.evaluation.prediction_table import kept
from clip_lightning.records import EMA, Record, metric_name
from clip_lightning.reliability.out_of_memory import out_of_memory_as
from clip_lightning.tokenizer import Tokenizer
from clip_lightning.training.clip_module import ClipModule
from clip_lightning.training.evaluation_share import EvaluationShare
from clip_lightning.training.validation_hooks import run_validation_hooks

STRIDE = "evaluation_stride"  # the record of `EvaluationShare`'s decision


class ZeroShotCallback(Callback):
    """Runs evaluators on every rank, for the average of weights as well, and passes their records to a sink on rank 0.

    The values are in `trainer.callback_metrics` of every rank, so that other callbacks can read them; what is logged
    comes from the records, so that each number has one source.

    Attributes:
        seconds: time spent in evaluation so far, which throughput leaves out.
        latest: the records of the newest evaluation, without those of time.
        predictions: on every image, of its raw weights, where evaluators keep them.
    """

    def __init__(
        self,
        evaluators: Sequence[Evaluator],
        tokenizer: Tokenizer,
        sink: Callable[[list[Record]], None],
        *,
        every: int,
        total_samples: int,
        is_recorded: Callable[[int], bool] = lambda samples_seen: False,
        max_share: float = 0.0,
        recorded_stride: Callable[[], int | None] = lambda: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Args.

        every: samples between evaluations; 0: only at the end.
        total_samples: of the whole run; one that stops before it is not evaluated at its end.
        is_recorded: whether an earlier start has recorded the evaluation at these samples; rank 0's answer counts.
        max_share: of the run's time that evaluation may take; 0: no limit.
        recorded_stride: the decision that an earlier start has recorded because of it; rank 0's answer counts.
        say: prints a line.
        """
        self.evaluators, self.tokenizer, self.sink = evaluators, tokenizer, sink
        self.every, self.total_samples, self.is_recorded = every, total_samples, is_recorded
        self.recorded_stride, self.say = recorded_stride, say
        self.share = EvaluationShare(max_share, every, total_samples)
        self.seconds = 0.0
        self.latest: list[Record] = []
        self.predictions: list[Table] = []
        self._samples_before = 0
        self._evaluated_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
        """Evaluates where this start resumes, if an earlier start has not."""
        self._samples_before = begin = pl_module.samples_seen
        self.share.begin(begin)
        self.share.stride = exchange(self.recorded_stride())[0]
        is_amid = 0 < begin < self.total_samples
        if not is_amid or not self._is_due(begin - pl_module.global_batch, begin):
            return
        is_recorded = pl_module.global_rank == 0 and self.is_recorded(begin)
        if not all_reduce_sum(torch.tensor([float(is_recorded)], device=pl_module.device)):
            if pl_module.ema is not None:
                pl_module.ema.begin()
            self._evaluate_in(trainer, pl_module)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: ClipModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Evaluates when the step passed a multiple of `every`, unless the run is about to stop."""
        before, self._samples_before = self._samples_before, pl_module.samples_seen
        if self._is_due(before, pl_module.samples_seen) and not trainer.should_stop:
            self._evaluate_in(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
        """Evaluates a run that is complete."""
        if pl_module.samples_seen >= self.total_samples:
            self._evaluate_in(trainer, pl_module)

    def evaluate(self, pl_module: ClipModule) -> list[Record]:
        """Measures everything now, unless the newest evaluation was at the same samples; returns the newest records."""
        return self._evaluate(pl_module, self.evaluators)

    def _evaluate(self, pl_module: ClipModule, chosen: Sequence[Evaluator]) -> list[Record]:
        if self._evaluated_at == pl_module.samples_seen:
            return self.latest
        start = time.perf_counter()
        measured = self._measure(pl_module, chosen)
        self.predictions = kept(chosen)
        if pl_module.ema is not None:
            with pl_module.ema.in_place():
                measured += [replace(record, weights=EMA) for record in self._measure(pl_module, chosen)]
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.latest = [replace(record, samples_seen=pl_module.samples_seen) for record in measured]
        self._evaluated_at = pl_module.samples_seen
        numbers = {metric_name(record): torch.tensor(record.value) for record in self.latest}
        pl_module.trainer.callback_metrics.update(numbers)
        decided = self._decide(seconds, pl_module.samples_seen) if len(chosen) == len(self.evaluators) else []
        if pl_module.global_rank == 0:
            spent = Record(what="evaluation_seconds", value=seconds, samples_seen=pl_module.samples_seen)
            self.sink([*self.latest, *decided, spent])
        return self.latest

    def _decide(self, seconds: float, samples_seen: int) -> list[Record]:
        """After the first whole evaluation: how often each test set is measured from now on; rank 0 decides."""
        if self.share.stride is not None or not self.share.max_share or samples_seen >= self.total_samples:
            return []
        line = self.share.decide(seconds, samples_seen, self.seconds)
        self.share.stride, line = exchange((self.share.stride, line))[0]
        if line:
            self.say(line)
        if self.share.stride is None:
            return []
        return [Record(what=STRIDE, value=float(self.share.stride), samples_seen=samples_seen)]

    def _evaluate_in(self, trainer: Trainer, pl_module: ClipModule) -> None:
        """Evaluates inside a fit, once per place, and runs the other callbacks' hooks of a validation."""
        if self._evaluated_at == pl_module.samples_seen:
            return
        chosen = list(self.evaluators)
        if pl_module.samples_seen < self.total_samples:
            chosen = self.share.due(self.evaluators, pl_module.samples_seen)
        if len(chosen) < len(self.evaluators):
            names = ", ".join(map(name_of, chosen)) or "none"
            self.say(f"eval.max_share: {len(chosen)} of {len(self.evaluators)} test sets at this evaluation: {names}")
        self._evaluate(pl_module, chosen)
        run_validation_hooks(trainer, pl_module)

    def _is_due(self, before: int, after: int) -> bool:
        return bool(self.every) and before // self.every < after // self.every

    def _measure(self, pl_module: ClipModule, chosen: Sequence[Evaluator]) -> list[Record]:
        with out_of_memory_as(f"an evaluation does not fit into the memory of {pl_module.device}: lower eval.batch"):
            return measure(chosen, pl_module.model, self.tokenizer, pl_module.device, self.say)
