"""A training run: `train` is the same function on every rank. What only rank 0 does goes through `run`."""

import gc
import shutil
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer

from clip_lightning import compat
from clip_lightning.config.schema import Config
from clip_lightning.data.order.skip_windows import SkipWindow
from clip_lightning.model.attention import choose_attention
from clip_lightning.parallel.process_group import CollectiveTimeout, record_collectives
from clip_lightning.reliability import monitored_barrier
from clip_lightning.reliability.checkpoint_callback import CheckpointCallback
from clip_lightning.reliability.nan_guard import DivergenceError
from clip_lightning.reliability.preemption import PreemptionCallback
from clip_lightning.run import callbacks, launch
from clip_lightning.run.console.throughput import Throughput
from clip_lightning.run.divergence import roll_back
from clip_lightning.run.evaluators import build_evaluators
from clip_lightning.run.figures import examples
from clip_lightning.run.first_step import FirstStep
from clip_lightning.run.hardware import uses_gpu
from clip_lightning.run.loggers import use_samples_as_steps
from clip_lightning.run.outcome import Outcome
from clip_lightning.run.rank_zero import OtherRank, open_run
from clip_lightning.run.trainer import quiet_libraries, trainer_arguments
from clip_lightning.training.clip_module import ClipModule
from clip_lightning.training.repeated_captions import RepeatedCaptions
from clip_lightning.training.zero_shot_callback import ZeroShotCallback

LOCKED = "locked"  # folder of the features of locked towers, until the run is finished
NO_WINDOWS: tuple[SkipWindow, ...] = ()


def train(config: Config, argv: Sequence[str] = ()) -> int:
    """Trains, resumes, or reports a run that is finished; returns the exit code.

    A divergence that rolls back begins another fit, as a process that resumes would.

    Args:
        config: resolved and checked.
        argv: the arguments of the command that made it.

    Raises:
        UserError: what the user can fix.
    """
    quiet_libraries()
    choose_attention(config.compute.precision, uses_gpu(config.cluster.accelerator))
    with open_run(config, argv) as run:  # rank 0 prepares the run; the others wait, and read the config it has written
        if run is None:
            return 0
        config, path, data, lengths = run.config, run.path, run.data, run.lengths
        windows, seconds, checkpoint = NO_WINDOWS, run.seconds_before, _checkpointing(run)
        record_collectives(path)
        with run.signals:
            launch.connect_ranks(uses_gpu(config.cluster.accelerator))
            while True:
                module = ClipModule(config, lengths)
                module.skip_windows = windows
                if config.cluster.cache_locked:
                    module.locked.keep_in(path / LOCKED, int(data.layout.shard_sizes.sum()))
                throughput, evaluation = _measuring(run, checkpoint, seconds)
                at_start = [] if windows else [callbacks.node_health(config, data), FirstStep(path)]  # once per start
                users_own = callbacks.user_callbacks(config, run.write)
                use_samples_as_steps(run.loggers, module)
                trainer = Trainer(
                    # Numbers of training are written before the checkpoint at their place: a run that is killed in
                    # between resumes from an older one and repeats them instead of missing them. An evaluation comes
                    # after it; the next start runs one that was missed.
                    callbacks=[
                        *at_start,
                        callbacks.SkipWindowLog(run.skip_windows),
                        throughput,
                        RepeatedCaptions(run.say),
                        PreemptionCallback(run.signals, checkpoint),
                        CollectiveTimeout(config.cluster.timeout_minutes),
                        checkpoint,
                        evaluation,
                        *users_own,
                    ],
                    logger=run.loggers,
                    default_root_dir=path,
                    **trainer_arguments(config, lengths, path, users_own),
                )
                compat.disable_signal_handling(trainer)
                try:
                    with monitored_barrier.on_failure():
                        trainer.fit(module, datamodule=data)
                    break
                except DivergenceError as divergence:
                    known, margin = module.skip_windows, lengths.rollback_margin
                    rollback = roll_back(divergence, known, config.compute, margin, checkpoint, path)
                finally:
                    data.write_bad_samples(path / "bad_samples.jsonl")
                run.rollback(rollback)
                windows, seconds = rollback.windows, throughput.elapsed()
                # Two models may not fit into memory; loader processes end with their loader.
                del module, trainer, evaluation, throughput
                data.trainer = None
                gc.collect()
                torch.cuda.empty_cache()
            module.to(trainer.strategy.root_device)
            is_complete = module.samples_seen >= lengths.total
            stopped_by = "" if is_complete or run.signals.received else callbacks.stop_reason(trainer, users_own)
            is_finished = is_complete or bool(stopped_by)
            if is_finished:
                shutil.rmtree(path / LOCKED, ignore_errors=True)
                evaluation.evaluate(module)
                run.evaluated(evaluation.predictions, module.samples_seen)
            shown, retrieved = examples(module, run.tokenizer, run.tasks.zero_shot, data) if is_finished else ([], [])
            data.exchange_bad_samples()
        seconds, bad_samples = throughput.seconds, data.bad_samples
        return run.end(Outcome(module.samples_seen, is_finished, stopped_by, seconds, bad_samples, shown, retrieved))
    return 0


def _checkpointing(run: OtherRank) -> CheckpointCallback:
    """The callback that saves, of all fits of this start."""
    return CheckpointCallback(
        run.checkpoints,
        every=run.lengths.checkpoint_every,
        minutes=run.config.cluster.checkpoint_minutes,
        resume=run.resume,
        about=run.about or {},
        sink=run.evaluation,
        on_saved=run.saved,
    )


def _measuring(run: OtherRank, checkpoint: CheckpointCallback, seconds: float) -> tuple[Throughput, ZeroShotCallback]:
    """The callbacks that measure one fit; throughput leaves out the time of evaluation and saving."""
    evaluation = ZeroShotCallback(
        build_evaluators(run.config, run.tasks, run.data, run.say), run.tokenizer, run.evaluation,
        every=run.lengths.eval_every, total_samples=run.lengths.total, is_recorded=run.is_evaluated,
        max_share=run.config.eval.max_share, recorded_stride=run.evaluation_stride, say=run.say,
    )  # fmt: skip
    throughput = Throughput(
        run.interval,
        run.data,
        run.costs,
        every=run.lengths.log_every,
        pauses=lambda: evaluation.seconds + checkpoint.seconds,
        seconds_before=seconds,
    )
    return throughput, evaluation
