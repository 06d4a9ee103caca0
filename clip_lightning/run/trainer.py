"""The arguments of Lightning's Trainer that this project sets: it only trains, and everything else is ours."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import PyTorchProfiler

from clip_lightning.config.schema import Config
from clip_lightning.parallel import strategy
from clip_lightning.run.hardware import cores_per_rank
from clip_lightning.slurm import environment as slurm_environment


def trainer_arguments(config: Config, folder: Path) -> dict[str, Any]:
    """Arguments of the Trainer for a run: the loader's length is the run's; saving and evaluating are callbacks.

    Args: folder: for traces of the profiler.
    """
    cluster = config.cluster
    # Threads wait for the slowest one: a core shared with a loader's worker costs more than it gains.
    cores = min(cores_per_rank(cluster.devices), torch.get_num_threads())
    torch.set_num_threads(cluster.threads or max(1, cores - cluster.workers))
    return {
        "accelerator": cluster.accelerator,
        "devices": cluster.devices,
        "num_nodes": cluster.nodes,
        "strategy": strategy.build(cluster),
        "plugins": slurm_environment.environment(cluster),
        "deterministic": config.compute.deterministic,
        "profiler": _profiler(folder) if config.debug.profile else None,
        "min_epochs": 0,
        "max_epochs": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }


def take_signals(trainer: Trainer) -> None:
    """Leaves signals to `reliability.preemption`.

    Lightning's handlers would end a fit that has not begun with exit code 0, and ask all ranks before every step
    whether a signal came, which waits for the device.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def quiet_libraries() -> None:
    """Keeps the notices and progress bars of libraries out of what a run prints; their errors stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    disable_progress_bars()
    transformers_logging.disable_progress_bar()


def _profiler(folder: Path) -> PyTorchProfiler:
    """Writes a trace of three steps, from the third on, for Chrome's or Perfetto's viewer into `profile/`."""
    schedule = torch.profiler.schedule(skip_first=1, wait=0, warmup=1, active=3, repeat=1)
    return PyTorchProfiler(dirpath=folder / "profile", filename="summary", schedule=schedule, record_shapes=True)
