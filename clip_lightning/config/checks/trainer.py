"""Which arguments of Lightning's Trainer a run takes in `trainer`, and which key of ours sets the others."""

from collections.abc import Iterator
from typing import Any

from clip_lightning.config.keys import did_you_mean, near

ALLOWED = ("limit_train_batches", "profiler", "detect_anomaly", "plugins", "benchmark", "enable_model_summary")
# What sets the same here, or why there is nothing to set.
SET_BY = {
    "accelerator": "write cluster.accelerator",
    "strategy": "write cluster.strategy",
    "devices": "write cluster.devices",
    "num_nodes": "write cluster.nodes",
    "precision": "write compute.precision",
    "gradient_clip_val": "write compute.gradient_clip",
    "gradient_clip_algorithm": "write compute.gradient_clip, which clips the global norm",
    "accumulate_grad_batches": "write cluster.micro_batch, which gives the gradient of the whole batch",
    "max_epochs": "write compute.duration",
    "min_epochs": "write compute.duration",
    "max_steps": "write compute.duration",
    "min_steps": "write compute.duration",
    "max_time": "write cluster.time_limit_minutes",
    "deterministic": "write compute.deterministic",
    "logger": "write logger=NAME",
    "callbacks": "write callbacks=NAME",
    "fast_dev_run": "write debug=fast_dev_run",
    "overfit_batches": "write debug.overfit_samples",
    "val_check_interval": "write eval.every",
    "check_val_every_n_epoch": "write eval.every",
    "limit_val_batches": "write data.validation.num_samples",
    "num_sanity_val_steps": "validation data is read before the first step; leave it out",
    "log_every_n_steps": "write cluster.log_every",
    "enable_checkpointing": "write cluster.checkpoint_every",
    "default_root_dir": "write runs",
    "sync_batchnorm": "write compute.batch_norm_samples",
    "use_distributed_sampler": "the order of the data splits itself over ranks; leave it out",
    "reload_dataloaders_every_n_epochs": "the loader covers the whole run; leave it out",
    "enable_progress_bar": "the console shows the progress; leave it out",
    "limit_test_batches": "nothing is tested in training; leave it out",
    "limit_predict_batches": "nothing is predicted in training; leave it out",
    "inference_mode": "evaluation decides it itself; leave it out",
    "barebones": "it switches off checkpoints and records; leave it out",
    "enable_autolog_hparams": "the config is logged; leave it out",
    "model_registry": "checkpoints are in the run's directory; leave it out",
}


def problems(arguments: dict[str, Any]) -> Iterator[str]:
    """A sentence for each argument in `trainer` that a run does not take."""
    for name, value in arguments.items():
        if name in SET_BY:
            yield f"trainer.{name}={value} is not taken: {SET_BY[name]}"
        elif name not in ALLOWED:
            hint = did_you_mean([f"trainer.{known}" for known in near(name, (*ALLOWED, *SET_BY))])
            yield f"trainer.{name}: Lightning's Trainer has no such argument{hint}"
