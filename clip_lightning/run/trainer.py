"""The arguments of Lightning's Trainer that this project sets: it only trains, and everything else is ours."""

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from clip_lightning.config.lengths import Lengths
from clip_lightning.config.schema import Config
from clip_lightning.parallel import strategy
from clip_lightning.run import objects
from clip_lightning.run.hardware import cores_per_rank
from clip_lightning.slurm import environment as slurm_environment


def trainer_arguments(
    config: Config, lengths: Lengths, folder: Path, users_own: Sequence[Callback] = ()
) -> dict[str, Any]:
    """Arguments of the Trainer for a run: the loader's length is the run's; saving and evaluating are callbacks.

    Args:
        folder: of the run, for what a profiler writes.
        users_own: callbacks of the user; a ModelCheckpoint among them works as under any Trainer.

    Raises:
        UserError: an argument in `trainer` cannot be made.
    """
    cluster, batch = config.cluster, config.compute.global_batch
    # Threads wait for the slowest one: a core shared with a loader's worker costs more than it gains.
    cores = min(cores_per_rank(cluster.devices), torch.get_num_threads())
    torch.set_num_threads(cluster.threads or max(1, cores - cluster.workers))
    given = {name: objects.build(value, f"trainer.{name}") for name, value in config.trainer.items()}
    environment = slurm_environment.environment(cluster)
    plugins = [environment] if environment is not None else []
    own = given.pop("plugins", None) or []
    return {
        "accelerator": cluster.accelerator,
        "devices": cluster.devices,
        "num_nodes": cluster.nodes,
        "strategy": strategy.build(cluster),
        "plugins": [*plugins, *(own if isinstance(own, list) else [own])] or None,
        "deterministic": config.compute.deterministic,
        "profiler": _profiler(given.pop("profiler", None), folder),
        "min_epochs": 0,
        "max_epochs": 1,
        "log_every_n_steps": max(1, lengths.log_every // batch),
        # Callbacks that check after a validation, like EarlyStopping, check after an evaluation of the run.
        "val_check_interval": max(1, lengths.eval_every // batch),
        "check_val_every_n_epoch": None,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in users_own),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        **given,
    }


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


def _profiler(given: Any, folder: Path) -> Any:
    """The profiler that `trainer.profiler` names; it writes into `profile/` of the run's directory.

    pytorch: a trace of three steps, from the third on, for the viewers of Chrome and Perfetto.
    """
    place: dict[str, Any] = {"dirpath": folder / "profile", "filename": "summary"}
    if given == "simple":
        return SimpleProfiler(**place)
    if given == "advanced":
        return AdvancedProfiler(**place)
    if given == "pytorch":
        schedule = torch.profiler.schedule(skip_first=1, wait=0, warmup=1, active=3, repeat=1)
        return PyTorchProfiler(**place, schedule=schedule, record_shapes=True)
    return given
