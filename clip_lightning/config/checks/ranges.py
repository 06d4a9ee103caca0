"""What each field of a config may hold by itself: names from a list, numbers in a range, durations that can be read."""

from collections.abc import Iterator
from functools import reduce
from typing import Any

from clip_lightning.config import duration
from clip_lightning.config.keys import did_you_mean, near
from clip_lightning.config.schema import Config, EvaluateConfig
from clip_lightning.errors import UserError

_CHOICES: dict[str, tuple[str, ...]] = {
    "model.vision.projection": ("linear", "none"),
    "model.vision.init": ("timm", "openai_vit", "openai_resnet"),
    "model.text.pool": ("eot", "cls", "mean", "last"),
    "model.text.projection": ("linear", "mlp", "none"),
    "model.text.init": ("huggingface", "openai"),
    "model.text.tokenizer.kind": ("paper", "hub", "trained"),
    "model.text.tokenizer.clean": ("none", "canonical"),
    "data.augment.crop": ("area", "square"),
    "data.kind": ("scenes", "webdataset", "parquet", "table", "folder", "coco", "mixture"),
    "compute.schedule": ("cosine", "constant", "constant_cooldown"),
    "compute.precision": ("bf16", "fp32", "fp16"),
    "compute.on_divergence": ("stop", "rollback"),
    "cluster.scheduler": ("none", "slurm"),
    "cluster.accelerator": ("auto", "cpu", "gpu"),
    "cluster.strategy": ("single", "ddp", "fsdp", "hsdp"),
    "cluster.activation_checkpointing": ("none", "full", "selective"),
    "loss.duplicates": ("none", "positives"),
    "weights": ("raw", "ema"),
    "tracker.name": ("wandb", "none"),
    "tracker.mode": ("auto", "online", "offline"),
}
_ABOVE_0 = [
    "model.embed_dim",
    "model.vision.image_size",
    "model.text.context_length",
    "model.text.tokenizer.vocab_size",
    "data.num_samples",
    "data.window_shards",
    "data.max_pixels",
    "data.cache.max_gib",
    "compute.global_batch",
    "compute.learning_rate",
    "compute.gradient_clip",
    "compute.nonfinite_limit",
    "compute.spike_threshold",
    "compute.spike_window",
    "compute.spike_limit",
    "compute.rollback_limit",
    "compute.cooldown_power",
    "optimizer.eps",
    "loss.chunk",
    "cluster.nodes",
    "cluster.devices",
    "cluster.micro_batch",
    "cluster.shard_size",
    "cluster.timeout_minutes",
    "cluster.threads",
    "cluster.time_limit_minutes",
    "cluster.keep_last",
    "cluster.device_memory_gib",
    "cluster.device_peak_tflops",
    "cluster.slurm.array_parallelism",
    "cluster.slurm.cpus_per_task",
    "eval.batch",
]
_FROM_0 = [
    "data.augment.pad",
    "data.validation.num_samples",
    "data.cache.retries",
    "data.cache.ahead",
    "compute.seed",
    "compute.final_learning_rate",
    "optimizer.weight_decay",
    "cluster.workers",
    "cluster.slurm.gpus_per_node",
    "cluster.slurm.signal_seconds",
    "debug.overfit_samples",
]
_BELOW_1 = [
    "model.vision.patch_dropout",
    "model.vision.drop_path",
    "optimizer.beta1",
    "optimizer.beta2",
]
_SHARES = [
    "data.augment.flip",
    "data.augment.grey",
    "data.max_bad_share",
]
DURATIONS = [
    "compute.duration",
    "compute.warmup",
    "compute.cooldown",
    "compute.rollback_margin",
    "cluster.checkpoint_every",
    "cluster.keep_every",
    "eval.every",
    "tracker.log_every",
]


def problems(config: Config | EvaluateConfig) -> Iterator[tuple[str, str]]:
    """Values that are wrong by themselves, by key."""
    for key, choices in _CHOICES.items():
        value = get(config, key)
        if value is not None and value not in choices and not (key == "data.kind" and get(config, "data._target_")):
            yield key, f"{key}={value} must be one of {', '.join(choices)}{did_you_mean(near(str(value), choices))}"
    rules: list[tuple[list[str], Any, str]] = [
        (_ABOVE_0, lambda value: value > 0, "above 0"),
        (_FROM_0, lambda value: value >= 0, "0 or more"),
        (_BELOW_1, lambda value: 0 <= value < 1, "from 0 to below 1"),
        (_SHARES, lambda value: 0 <= value <= 1, "from 0 to 1"),
        (["compute.batch_norm_samples"], lambda value: value > 1, "2 or more: one sample has no batch statistics"),
        (["compute.ema_decay", "cluster.assumed_mfu"], lambda value: 0 < value < 1, "between 0 and 1"),
        (["model.vision.mean", "model.vision.std"], lambda value: len(value) == 3, "three numbers: red, green, blue"),
        (["data.augment.color_jitter"], lambda value: len(value) in (0, 4), "empty, or four numbers"),
        (["data.augment.crop_scale"], lambda value: _ascends(value, 1), "two shares of the area, [least,most]"),
        (["data.augment.crop_ratio"], lambda value: _ascends(value), "two ratios, [least,most]"),
    ]
    for names, holds, rule in rules:
        for key in names:
            if (value := get(config, key)) is not None and not holds(value):
                yield key, f"{key}={value} must be {rule}"
    for key in DURATIONS:
        if (value := get(config, key)) is not None:
            try:
                duration.parse(value)
            except UserError as error:
                yield key, f"{key}: {error}"


def get(config: Any, key: str) -> Any:
    """The value of a dotted key; None where this kind of config has no such part."""
    return reduce(lambda part, name: getattr(part, name, None), key.split("."), config)


def _ascends(pair: list[float], most: float = float("inf")) -> bool:
    return len(pair) == 2 and 0 < pair[0] <= pair[1] <= most
