"""What every rank does in a run: model, callbacks in their order, Lightning's Trainer, fit, final evaluation."""

import gc
import logging
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import PyTorchProfiler

from clip_lightning import compat
from clip_lightning.config.lengths import Lengths
from clip_lightning.config.schema import Config
from clip_lightning.data.datamodule import Batch, ContrastiveDataModule
from clip_lightning.data.loader import LARGEST_PIECE, PREFETCHED_PIECES
from clip_lightning.data.order.skip_windows import SkipWindow
from clip_lightning.distributed import exchange
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.predictions import Prediction
from clip_lightning.evaluation.retrieval import RetrievalEvaluator
from clip_lightning.evaluation.tasks import ZeroShotTask
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
from clip_lightning.parallel import strategy
from clip_lightning.parallel.process_group import CollectiveTimeout, record_collectives
from clip_lightning.records import Record
from clip_lightning.reliability import monitored_barrier as roll_call
from clip_lightning.reliability.checkpoint_callback import CheckpointCallback
from clip_lightning.reliability.nan_guard import DivergenceError
from clip_lightning.reliability.node_health import NodeHealth
from clip_lightning.reliability.preemption import PreemptionCallback, StopSignals
from clip_lightning.run import launch
from clip_lightning.run.console.progress import Interval
from clip_lightning.run.console.throughput import Costs, Throughput
from clip_lightning.run.divergence import Rollback, roll_back
from clip_lightning.run.figures import example_predictions
from clip_lightning.run.hardware import cores_per_rank, uses_gpu
from clip_lightning.slurm import environment as slurm_environment
from clip_lightning.tokenizer import Tokenizer
from clip_lightning.training.clip_module import ClipModule
from clip_lightning.training.zero_shot_callback import Evaluator, ZeroShotCallback

# Features of locked towers, while a run goes on.
LOCKED = "locked"


class Sink:
    """Where measurements go; this one is for ranks that report nothing."""

    def interval(self, interval: Interval, records: list[Record]) -> None:
        """Takes the numbers of an interval."""

    def evaluation(self, records: list[Record]) -> None:
        """Takes the records of an evaluation."""

    def is_evaluated(self, samples_seen: int) -> bool:
        """Whether there are records of an evaluation at this place."""
        return False

    def rollback(self, rollback: Rollback) -> None:
        """Takes note that what came after a checkpoint no longer counts."""

    def skip_windows(self, windows: Sequence[SkipWindow]) -> None:
        """Takes the windows that the run passes over, at every start."""


class _Fit(NamedTuple):
    """One course from a checkpoint on."""

    trainer: Trainer
    module: ClipModule
    zero_shot: ZeroShotCallback
    meter: Throughput


class _SkipWindow(Callback):
    """Tells a sink what the restored run passes over."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def on_train_start(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
        self.sink.skip_windows(pl_module.skip_windows)


@dataclass(frozen=True)
class Outcome:
    """Where a fit ended.

    Attributes:
        seconds: of all starts together.
        bad_samples: number by cause, of all ranks, in this start.
        shown: example predictions of a run that is complete.
    """

    samples_seen: int
    complete: bool
    seconds: float
    bad_samples: Counter[str]
    shown: list[Prediction]


@dataclass(frozen=True)
class Session:
    """One rank's part of a run: what it needs, and the run itself."""

    config: Config
    path: Path
    datamodule: ContrastiveDataModule
    lengths: Lengths
    tasks: Sequence[ZeroShotTask]
    tokenizer: Tokenizer

    def run(
        self,
        checkpoint: CheckpointCallback,
        costs: Costs,
        sink: Sink,
        signals: StopSignals,
        seconds_before: float = 0.0,
    ) -> Outcome:
        """Trains from the checkpoint that `checkpoint` resumes to the end, or until a signal asks to leave.

        A run that goes back from a divergence begins a new fit, as a process that resumes would.
        """
        config, datamodule = self.config, self.datamodule
        datamodule.tokenizer = self.tokenizer
        checkpoint.sink = sink.evaluation
        record_collectives(self.path)
        windows: tuple[SkipWindow, ...] = ()
        with signals:
            launch.meet(uses_gpu(config.cluster.accelerator))
            while True:
                fit = self._assemble(checkpoint, costs, sink, signals, seconds_before, windows)
                try:
                    with roll_call.on_failure():
                        fit.trainer.fit(fit.module, datamodule=datamodule)
                    break
                except DivergenceError as divergence:
                    rollback = roll_back(
                        divergence, fit.module.skip_windows, config.compute, self.lengths.rollback_margin,
                        checkpoint, self.path,
                    )  # fmt: skip
                finally:
                    datamodule.write_bad_samples(self.path / "bad_samples.jsonl")
                sink.rollback(rollback)
                windows, seconds_before = rollback.windows, fit.meter.elapsed()
                # Two models at a time may be one too many; loader processes leave with their loader.
                del fit
                datamodule.trainer = None
                gc.collect()
                torch.cuda.empty_cache()
            module, zero_shot = fit.module, fit.zero_shot
            module.to(fit.trainer.strategy.root_device)
            complete = module.samples_seen >= self.lengths.total
            shown: list[Prediction] = []
            if complete:
                shutil.rmtree(self.path / LOCKED, ignore_errors=True)
                zero_shot.evaluate(module)
                shown = example_predictions(module, self.tokenizer, self.tasks, config.model.vision.image_size)
        return Outcome(module.samples_seen, complete, fit.meter.seconds, _all_bad_samples(datamodule), shown)

    def _assemble(
        self,
        checkpoint: CheckpointCallback,
        costs: Costs,
        sink: Sink,
        signals: StopSignals,
        seconds_before: float,
        windows: tuple[SkipWindow, ...],
    ) -> _Fit:
        config, datamodule = self.config, self.datamodule
        module = ClipModule(config, self.lengths)
        if config.cluster.cache_locked:
            module.locked.keep_in(self.path / LOCKED, int(datamodule.layout.shard_sizes.sum()))
        module.skip_windows = windows
        zero_shot = ZeroShotCallback(
            evaluators(config, self.tasks, datamodule),
            self.tokenizer,
            sink.evaluation,
            every=self.lengths.eval_every,
            total_samples=self.lengths.total,
            is_recorded=sink.is_evaluated,
        )
        meter = Throughput(
            sink.interval,
            datamodule,
            costs,
            every=self.lengths.log_every,
            pauses=lambda: zero_shot.seconds + checkpoint.seconds,
            seconds_before=seconds_before,
        )
        # Training's numbers are written before the checkpoint at their place: a run that is killed in between resumes
        # from an older one and repeats them, instead of missing them. An evaluation comes after it, and is made up for.
        patience = CollectiveTimeout(config.cluster.timeout_minutes)
        stop = PreemptionCallback(signals, checkpoint)
        callbacks = [_SkipWindow(sink), meter, stop, patience, checkpoint, zero_shot]
        if not windows:  # later fits are those of nodes that have trained already
            callbacks.insert(0, self._node_health())
        return _Fit(build_trainer(config, callbacks, self.path), module, zero_shot, meter)

    def _node_health(self) -> NodeHealth:
        """Compares the machines of the run: what loader processes hand over, and a sample read on each."""
        config, datamodule = self.config, self.datamodule

        def read_a_sample() -> str:
            datamodule.layout.read_many(datamodule.order.training_ids(np.zeros(1, dtype=np.int64)))
            return datamodule.fingerprint

        share = config.compute.global_batch // (config.cluster.nodes * config.cluster.devices)
        piece = min(share, LARGEST_PIECE) * 3 * config.model.vision.image_size**2
        in_flight = config.cluster.workers * (PREFETCHED_PIECES + 1)
        return NodeHealth(in_flight * piece, read_a_sample)


def evaluators(
    config: Config, tasks: Sequence[ZeroShotTask], datamodule: ContrastiveDataModule | None
) -> list[Evaluator]:
    """One evaluator per task, and one of the validation pairs where there are any."""
    size, precision, budget = config.model.vision.image_size, config.compute.precision, MemoryBudget()
    found: list[Evaluator] = [
        ZeroShotEvaluator(task, size, batch=config.eval.batch, precision=precision, budget=budget) for task in tasks
    ]
    if datamodule is not None and config.data.validation.num_samples:
        pairs = _Validation(datamodule)
        found.append(RetrievalEvaluator(pairs, batch=config.eval.batch, precision=precision, budget=budget))
    return found


class _Validation:
    """This rank's validation batches; the loader is made when it is clear which rank this is."""

    def __init__(self, datamodule: ContrastiveDataModule) -> None:
        self.datamodule = datamodule

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.datamodule.val_dataloader())


def build_trainer(config: Config, callbacks: list[Any], folder: Path) -> Trainer:
    """A Trainer that only trains: the loader's length is the run's; saving, logging and evaluating are ours."""
    cluster = config.cluster
    # A team of threads waits for its slowest: one core shared with a loader's worker costs more than it brings.
    cores = min(cores_per_rank(cluster.devices), torch.get_num_threads())
    torch.set_num_threads(cluster.threads or max(1, cores - cluster.workers))
    trainer = Trainer(
        accelerator=cluster.accelerator,
        devices=cluster.devices,
        num_nodes=cluster.nodes,
        strategy=strategy.build(cluster),
        plugins=slurm_environment.environment(cluster),
        deterministic=config.compute.deterministic,
        callbacks=callbacks,
        default_root_dir=folder,
        profiler=_profiler(folder) if config.debug.profile else None,
        min_epochs=0,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    compat.disable_signal_handling(trainer)
    return trainer


def _profiler(folder: Path) -> PyTorchProfiler:
    """Writes a trace of three steps, from the third on, for Chrome's or Perfetto's viewer into `profile/`."""
    schedule = torch.profiler.schedule(skip_first=1, wait=0, warmup=1, active=3, repeat=1)
    return PyTorchProfiler(dirpath=folder / "profile", filename="summary", schedule=schedule, record_shapes=True)


def quiet_libraries() -> None:
    """Lightning's advice and notices are no part of what a run prints; its errors are."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


def _all_bad_samples(datamodule: ContrastiveDataModule) -> Counter[str]:
    return sum(exchange(datamodule.bad_samples), Counter())
