"""A rank other than 0: the same steps, no word."""

import signal
from contextlib import suppress
from pathlib import Path

from clip_lightning.config.lengths import resolve_lengths
from clip_lightning.config.schema import Config
from clip_lightning.errors import AgreedError
from clip_lightning.evaluation.tasks import build_tasks
from clip_lightning.reliability.checkpoint import CheckpointFolder
from clip_lightning.reliability.checkpoint_callback import CheckpointCallback
from clip_lightning.reliability.preemption import StopSignals
from clip_lightning.run.console.throughput import Costs
from clip_lightning.run.plan.preflight import build_datamodule
from clip_lightning.run.session import Session, Sink
from clip_lightning.run.tokenizer import prepare_tokenizer
from clip_lightning.slurm import tasks as slurm_tasks
from clip_lightning.training.saved_model import config_of_resume


def follow(config: Config, path: Path) -> int:
    """Trains with rank 0; returns the exit code.

    It is 0 even when a signal, or what all ranks agree on, ended the run: all ranks are killed when one leaves with an
    error, and rank 0 may still be writing.
    """
    config = config_of_resume(config, path)
    datamodule = build_datamodule(config)
    lengths = resolve_lengths(config, datamodule.num_samples)
    tasks = build_tasks(config.eval.tasks or [], config.eval.folders)
    tokenizer = prepare_tokenizer(config, path / "tokenizer", datamodule)
    folder = CheckpointFolder(path / "checkpoints", keep_last=config.cluster.keep_last)
    checkpoint = CheckpointCallback(folder, every=lengths.checkpoint_every, resume=None, about={})
    session = Session(config, path, datamodule, lengths, tasks, tokenizer)
    with suppress(AgreedError):
        session.run(checkpoint, Costs(lambda _: 0.0, None), Sink(), StopSignals())
    if slurm_tasks.step():
        # Rank 0 may leave first, with its signal's code; srun then ends the others, and the highest code is the job's.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0
