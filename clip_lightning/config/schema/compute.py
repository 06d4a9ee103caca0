"""The keys of `compute`, `optimizer` and `loss`: how long, how fast and towards what a run learns."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from clip_lightning.config.schema.field import key


@dataclass
class Recipe:
    """What depends on the model in a preset; fills the keys of that name in `compute` and `optimizer` that are null."""

    learning_rate: float | None = key(None, "")
    beta2: float | None = key(None, "")
    eps: float | None = key(None, "")
    weight_decay: float | None = key(None, "")


@dataclass
class PhaseConfig:
    """A part of a run that trains on other images and texts; holds until the next one starts."""

    start: str = key(
        "", "any duration from the run's begin, rounded to whole steps: '80%', '400M samples', '0 steps'", duration=True
    )
    image_size: int | None = key(None, "pixels, square; null: the model's own, which is the largest")
    context_length: int | None = key(
        None, "tokens at which captions are cut; null: the model's own, which is the largest"
    )
    patch_dropout: float | None = key(
        None, "share of patches left out (FLIP); null: the model's own", minimum=0, below=1
    )


@dataclass
class ComputeConfig:
    """How long, how fast and how exactly a run learns."""

    name: str = key(MISSING, "third part of the run's name")
    duration: str = key(MISSING, "'32 epochs', '400M samples', '1000 steps'", duration=True)
    global_batch: int = key(MISSING, "pairs per optimizer step over all ranks", above=0)
    learning_rate: float | None = key(None, "peak; null: recipes", above=0)
    recipes: dict[str, Recipe] = key({}, "by model name, and `default`; emptied when resolved", science=False)
    warmup: str = key("0 samples", "any duration; '5%' is of the run", duration=True)
    schedule: str = key(
        "cosine", "cosine, constant, constant_cooldown", choices=("cosine", "constant", "constant_cooldown")
    )
    cooldown: str = key("0 samples", "constant_cooldown only", duration=True)
    cooldown_power: float = key(1.0, "exponent of the cool-down; 1 is linear", above=0)
    final_learning_rate: float = key(0.0, "where cosine and cool-down end", minimum=0)
    gradient_clip: float | None = key(None, "largest global norm", above=0)
    precision: str = key(
        "bf16", "fp32, bf16, fp16 (towers; logits are float32 always)", choices=("bf16", "fp32", "fp16")
    )
    seed: int = key(0, "of weights, order of the data and augmentation", minimum=0)
    phases: list[PhaseConfig] = key([], "smaller images, shorter texts, fewer patches; empty: none")
    batch_norm_samples: int = key(256, "samples that share batch statistics (towers with batch norm)", minimum=2)
    deterministic: bool = key(False, "deterministic GPU kernels")
    ema_decay: float | None = key(None, "per step; null: no average of weights", above=0, below=1)
    nonfinite_limit: int = key(
        10, "skipped steps in a row (loss or gradient not finite) that are a divergence", above=0
    )
    spike_threshold: float | None = key(
        None, "MADs above its median at which loss or gradient norm is a spike; null: off", above=0
    )
    spike_window: int = key(128, "steps before it that median and MAD (median absolute deviation) are of", above=0)
    spike_limit: int = key(3, "spikes in a row that are a divergence", above=0)
    on_divergence: str = key(
        "stop",
        "stop (with its sample ids), rollback (and skip its samples)",
        choices=("stop", "rollback"),
        science=False,
    )
    rollback_margin: str = key("100 steps", "also skipped, before and after the steps of a divergence", duration=True)
    rollback_limit: int = key(3, "rollbacks after which a divergence stops the run", above=0, science=False)


@dataclass
class OptimizerConfig:
    """The optimizer; the learning rate is `compute`'s. beta1, beta2 and eps are AdamW's."""

    name: str = key("adamw", "the option's name")
    beta1: float = key(0.9, "decay of the mean of gradients", minimum=0, below=1)
    beta2: float | None = key(None, "null: recipes", minimum=0, below=1)
    eps: float | None = key(None, "null: recipes", above=0)
    weight_decay: float | None = key(
        None, "null: recipes, or the default of _target_; not on gains, biases, position embeddings, scale", minimum=0
    )
    _target_: str | None = key(
        None, "import path of another torch.optim.Optimizer; never taken from a checkpoint", hash_default=False
    )
    options: dict[str, Any] = key({}, "arguments of _target_, without the learning rate", hash_default=False)


@dataclass
class LossConfig:
    """The objective, and where the logit scale and bias begin."""

    name: str = key(MISSING, "a name of the registry: softmax, sigmoid, ...; or the user's own with _target_")
    logit_scale_init: float = key(2.6592600369327779, "ln(1 / 0.07) (paper section 2.5)")
    logit_scale_max: float | None = key(4.605170185988092, "ln 100 (paper section 2.5); null: not clamped")
    logit_bias_init: float | None = key(None, "null: no bias")
    chunk: int = key(256, "rows of logits held at a time", above=0, science=False)
    duplicates: str = key(
        "none",
        "positives: equal captions or images of a batch are positives of each other; or none",
        choices=("none", "positives"),
        hash_default=False,
    )
    options: dict[str, Any] = key({}, "further arguments of the loss")
    teacher: str | None = key(None, "distill: directory of a finished run", science=False)
    teacher_science: str | None = key(None, "the teacher's science hash; null: read from its directory")
    _target_: str | None = key(None, "import path of the user's own loss; never taken from a checkpoint")
