"""The typed schema of a run: one dataclass per Hydra group, with help, allowed values and science beside each field.

Imports no torch: a mistake in a config is reported in under a second. `model`, `data`, `compute`, `loss` and
`optimizer` are the science of a run and enter its hash, except for fields with `science=False`; nothing else does,
except for `debug.overfit_samples`. A field of None is either off or, where its help says so, filled by `compose` before
anything reads it.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from clip_lightning.config.schema.cluster import ClusterConfig, SlurmConfig
from clip_lightning.config.schema.compute import ComputeConfig, LossConfig, OptimizerConfig, PhaseConfig, Recipe
from clip_lightning.config.schema.data import AugmentConfig, CacheConfig, DataConfig, ValidationConfig
from clip_lightning.config.schema.field import key, part
from clip_lightning.config.schema.model import (
    ModelConfig,
    TextConfig,
    TokenizerConfig,
    VisionConfig,
)

__all__ = [
    "AugmentConfig",
    "CacheConfig",
    "ClusterConfig",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "DebugConfig",
    "EvalConfig",
    "EvaluateConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PhaseConfig",
    "Recipe",
    "SlurmConfig",
    "TextConfig",
    "TokenizerConfig",
    "ValidationConfig",
    "VisionConfig",
]


@dataclass
class EvalConfig:
    """What is measured during and after training."""

    name: str = key(MISSING, "the option's name; of several the last one's")
    suites: dict[str, bool] = key(
        {}, "NAME: true for each suite of data sets: quick, paper36, datacomp38, vtab, imagenet_shifts, retrieval"
    )
    root: str | None = key(None, "folder in which the data sets are, each in a folder of its own")
    tasks: list[str] | None = key(None, "registered tasks and data sets; null: data.tasks, with a suite none")
    folders: list[str] = key([], "folders in CLIP_benchmark's layout, each a task")
    prompt_sets: bool = key(False, "measure each data set's further prompt sets too: contextless, single, ...")
    every: str = key("20%", "duration between evaluations during training; '0 samples': only at the end", duration=True)
    max_share: float = key(
        0.0,
        "largest share of a run's time for evaluation; above it each set is measured at every second, third, ... "
        "evaluation, and at the end; 0: no limit",
        minimum=0,
        below=1,
    )
    batch: int = key(256, "images per forward on a rank", above=0)
    keep_predictions: bool = key(
        False, "write predictions.parquet, the prediction on every image, at the end of a run and in evaluate.py"
    )


@dataclass
class DebugConfig:
    """Settings for looking into a run."""

    name: str = key("none", "the option's name", science=False)
    overfit_samples: int = key(
        0, "> 0: the run sees only the first so many samples, in every epoch", minimum=0, hash_default=False
    )


@dataclass
class Config:
    """A training run. Composed in the order: schema, groups, _self_, experiment, local, debug."""

    model: ModelConfig = part(ModelConfig, science=True)
    data: DataConfig = part(DataConfig, science=True)
    compute: ComputeConfig = part(ComputeConfig, science=True)
    optimizer: OptimizerConfig = part(OptimizerConfig, science=True)
    loss: LossConfig = part(LossConfig, science=True)
    cluster: ClusterConfig = part(ClusterConfig, science=False)
    eval: EvalConfig = part(EvalConfig, science=False)
    debug: DebugConfig = part(DebugConfig, science=True)
    callbacks: dict[str, Any] = key(
        {}, "name: {_target_: import path, further arguments} of Lightning callbacks", science=False
    )
    logger: dict[str, Any] = key(
        {}, "name: {_target_: import path, further arguments} of Lightning loggers", science=False
    )
    trainer: dict[str, Any] = key({}, "further arguments of Lightning's Trainer", science=False)
    experiment: str | None = key(None, "name of the preset, for the record", science=False)
    runs: str = key("runs", "folder of all runs", science=False)
    fresh: bool = key(False, "start over although the run's directory exists", science=False)
    allow_changed: list[str] = key([], "data, or science keys, that may differ from the run's", science=False)
    dry_run: bool = key(False, "check, cost and stop", science=False)


@dataclass
class EvaluateConfig:
    """An evaluation of a finished or running run."""

    run: str | None = key(None, "directory of the run", science=False)
    pretrained: str | None = key(
        None, "instead of a run: another library's model, as model.pretrained takes it (docs/weights.md)", science=False
    )
    runs: str = key("runs", "folder for the records of pretrained=", science=False)
    checkpoint: str = key("last", "last, or a path below the run's checkpoints", science=False)
    weights: str = key(
        "raw", "raw, or ema: their running average, which the run kept", choices=("raw", "ema"), science=False
    )
    eval: EvalConfig = part(EvalConfig, science=False)
    cluster: ClusterConfig = part(ClusterConfig, science=False)
    allow_target: list[str] = key([], "import paths in the run's config that may be called", science=False)
