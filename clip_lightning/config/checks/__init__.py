"""What one field of a config says about another, told before torch is imported: every problem, one sentence each.

A sentence names key, value, rule and mend. What needs the data, the towers or the hub is the preflight's.
"""

import importlib.util
import math
import re
from collections.abc import Iterator
from pathlib import Path

from clip_lightning.config import duration, identity, keys, parts, phases
from clip_lightning.config.checks import cluster as machine
from clip_lightning.config.checks import paths as data_places
from clip_lightning.config.checks import ranges as values
from clip_lightning.config.keys import did_you_mean, near
from clip_lightning.config.schema import (
    ComputeConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    TextConfig,
    VisionConfig,
)

_BATCH = [
    "compute.global_batch",
    "compute.batch_norm_samples",
    "cluster.nodes",
    "cluster.devices",
    "cluster.micro_batch",
]
_UNREAD_BY_SCENES = (
    "path",
    "image_keys",
    "caption_keys",
    "exif_rotation",
    "jpeg_scaling",
    "window_shards",
    "index_folder",
)
# Positions that these encoders count from behind their padding id.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
_RESNET_SIZES = {"resnet50x4_clip": 288, "resnet50x16_clip": 384, "resnet50x64_clip": 448}


def check(config: Config | EvaluateConfig) -> list[str]:
    """Every problem of a typed and resolved config, one sentence each; an empty list where there is none."""
    wrong = dict(values.problems(config))
    problems = [*wrong.values(), *machine.problems(config)]
    if isinstance(config, EvaluateConfig):
        return [*problems, *_run_folder(config)]
    problems += [
        *_vision(config.model.vision),
        *_text(config.model.text),
        *_loss(config),
        *_cached(config),
        *_names(config),
    ]
    problems += [*_data(config.data), *data_places.problems(config)]
    problems += [*_allowed(config.allow_changed), *phases.problems(config), *_guards(config.compute)]
    if not wrong.keys() & {*_BATCH, *values.DURATIONS}:
        problems += [*_batch(config), *_lengths(config), *_schedule(config)]
    return problems


def _run_folder(config: EvaluateConfig) -> Iterator[str]:
    run = Path(config.run)
    if not (run / "config.yaml").is_file():
        runs = [path.parent.name for path in sorted(run.parent.glob("*/config.yaml"))]
        yield f"run={config.run} is no run's directory: it has no config.yaml{did_you_mean(near(run.name, runs))}"


def _vision(vision: VisionConfig) -> Iterator[str]:
    yield from _own_builder("model.vision", vision._target_)
    if bool(vision.timm) == bool(vision._target_):
        given = "both are set" if vision.timm else "neither is set"
        yield f"model.vision.timm and model.vision._target_: {given}, and exactly one of them builds the tower"
    if vision.locked and not vision.pretrained:
        yield "model.vision.locked=true freezes random weights; set model.vision.pretrained to true or a path"
    for name in ("patch_dropout", "drop_path"):
        if vision.locked and (share := getattr(vision, name)):
            yield f"model.vision.{name}={share} has no effect: model.vision.locked=true leaves nothing out; write 0"
    if not vision.timm:
        return
    architecture, size = vision.timm.split(".")[0], vision.image_size
    patch = phases.patch_size(vision)
    if patch and size % patch:
        yield (
            f"model.vision.image_size={size} must be a multiple of the patch size {patch} of {vision.timm}; "
            f"write {max(1, size // patch) * patch} or {(size // patch + 1) * patch}"
        )
    if vision.patch_dropout and not patch:
        yield f"model.vision.patch_dropout={vision.patch_dropout} has no effect: {vision.timm} has no patches; write 0"
    ends = re.search(r"_(\d{3})$", architecture)
    largest = int(ends[1]) if ends else _RESNET_SIZES.get(architecture, 224 if "_clip" in architecture else size)
    if size > largest and not {"img_size", "dynamic_img_size"} & vision.options.keys():
        yield (
            f"model.vision.image_size={size} is beyond the {largest} pixels of {vision.timm}; write {largest} or less, "
            f"or model.vision.options.img_size={size} to build the backbone for that size"
        )


def _text(text: TextConfig) -> Iterator[str]:
    yield from _own_builder("model.text", text._target_)
    config = text.config
    if not (text.huggingface or config or text._target_):
        yield "model.text names no encoder; set model.text.huggingface to a hub name or folder, or model.text.config"
    if text.locked and not text.pretrained:
        yield "model.text.locked=true freezes random weights; set model.text.pretrained to true or a path"
    if text.projection == "none" and text.projection_bias:
        yield "model.text.projection_bias=true has no effect with model.text.projection=none; leave one out"
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if isinstance(positions, int):
        if config.get("model_type") in _OFFSET_POSITIONS:
            positions -= int(config.get("pad_token_id", 1)) + 1
        if text.context_length > positions:
            yield (
                f"model.text.context_length={text.context_length} is beyond the {positions} positions of the encoder "
                f"{text.name}; write {positions} or less"
            )
    words, tokens = config.get("vocab_size"), text.tokenizer.vocab_size
    if isinstance(words, int) and words != tokens:
        yield (
            f"model.text.tokenizer.vocab_size={tokens} differs from the {words} rows of the encoder's embedding; "
            "set it and model.text.config.vocab_size to the same number"
        )


def _loss(config: Config) -> Iterator[str]:
    loss = config.loss
    yield from _own_builder("loss", loss._target_)
    if loss.name in ("softmax", "distill") and loss.logit_bias_init is not None:
        yield f"loss.logit_bias_init={loss.logit_bias_init} has no effect: a bias cancels in the softmax; write null"
    if loss.name == "distill" and loss.teacher is None:
        yield "loss=distill learns from a teacher: write loss.teacher=DIR, the directory of a finished run"
    if loss.teacher is None and loss.teacher_science is not None:
        yield f"loss.teacher_science={loss.teacher_science} has no effect without loss.teacher; leave it out"
    if loss.logit_scale_max is not None and loss.logit_scale_max < loss.logit_scale_init:
        yield (
            f"loss.logit_scale_max={loss.logit_scale_max} is below loss.logit_scale_init={loss.logit_scale_init}; "
            "both are logarithms"
        )


def _cached(config: Config) -> Iterator[str]:
    """Whether the features of locked towers can come again."""
    vision, augment = config.model.vision, config.data.augment
    if not config.cluster.cache_locked:
        return
    if not (vision.locked or config.model.text.locked):
        yield (
            "cluster.cache_locked=true has no effect: neither model.vision.locked nor model.text.locked is true; "
            "leave it out"
        )
    if config.cluster.strategy in ("fsdp", "hsdp"):
        yield (
            f"cluster.cache_locked=true cannot be with cluster.strategy={config.cluster.strategy}, whose ranks have "
            "to compute with a tower's weights at the same time; leave it out, or write cluster=ddp"
        )
    still = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "pad": 0, "flip": 0.0, "color_jitter": [], "grey": 0.0}
    drawn = {name: value for name, value in still.items() if getattr(augment, name) != value}
    if vision.locked and drawn:
        wanted = " ".join(f"data.augment.{name}={value}".replace(", ", ",") for name, value in drawn.items())
        yield (
            "cluster.cache_locked=true has no effect on images that augmentation draws anew in every epoch; "
            f"write {wanted}, or leave it out"
        )


def _names(config: Config) -> Iterator[str]:
    names = {"model": identity.model_name(config), "data": config.data.name, "compute": config.compute.name}
    for group, name in names.items():
        if not re.fullmatch(r"[\w.+-]+", name):
            yield f"{group}.name={name} names the run's directory; use letters, digits, and . _ + - only"


def _data(data: DataConfig) -> Iterator[str]:
    """Settings of the data that its kind does not read."""
    yield from _own_builder("data", data._target_)
    if data.options and not data._target_:
        yield "data.options has no effect without data._target_, whose arguments it holds; leave it out"
    unread = []
    if data.kind == "scenes" and not data._target_:
        unread = [*_UNREAD_BY_SCENES]
    if data.kind != "mixture":
        unread += ["mixture", "mixture_paths"]
    if data.kind != "table":
        unread.append("quotes")
    default = DataConfig()
    for name in ("crop_scale", "crop_ratio"):
        if data.augment.crop == "square" and getattr(data.augment, name) != getattr(default.augment, name):
            yield f"data.augment.{name} has no effect with data.augment.crop=square; leave it out"
    for name in unread:
        if (value := getattr(data, name)) != getattr(default, name):
            yield f"data.{name}={value} has no effect with data.kind={data.kind}; leave it out"
    if data.kind == "mixture":
        if not data.mixture or min(data.mixture.values()) <= 0:
            yield f"data.mixture={data.mixture} must give each data option a weight above 0, like {{cc12m: 1.0}}"
        if strangers := sorted(data.mixture_paths.keys() - data.mixture.keys()):
            yield f"data.mixture_paths names {', '.join(strangers)}, without a weight in data.mixture; add one"
        yield from parts.problems(data)


def _schedule(config: Config) -> Iterator[str]:
    """Settings of the schedule and of batch norm that nothing reads."""
    compute = config.compute
    cools = compute.schedule == "constant_cooldown"
    length = duration.parse(compute.cooldown).amount
    unread = []
    if cools and not length:
        yield "compute.schedule=constant_cooldown needs a length, and compute.cooldown is 0; write compute.cooldown=20%"
    if not cools:
        unread += ["cooldown"] if length else []
        unread += ["cooldown_power"] if compute.cooldown_power != 1 else []
    if compute.schedule == "constant" and compute.final_learning_rate:
        unread.append("final_learning_rate")
    for name in unread:
        yield (
            f"compute.{name}={getattr(compute, name)} has no effect with compute.schedule={compute.schedule}; "
            "leave it out, or write compute.schedule=constant_cooldown"
        )
    if not config.model.vision.batch_norm and compute.batch_norm_samples != ComputeConfig.batch_norm_samples:
        yield (
            f"compute.batch_norm_samples={compute.batch_norm_samples} has no effect: model={config.model.name} has no "
            "batch norm; leave it out"
        )


def _allowed(names: list[str]) -> Iterator[str]:
    """What may change within a run is data, or a key."""
    known = ["data", *keys.table(Config)]
    for name in names:
        if name not in known:
            near = keys.did_you_mean(keys.near(name, known))
            yield f"allow_changed: {name} is no key{near}; write data, or a key's name"


def _guards(compute: ComputeConfig) -> Iterator[str]:
    """Settings of the guards that nothing reads."""
    unread = []
    if compute.spike_threshold is None:
        unread += [("spike_window", "compute.spike_threshold=null"), ("spike_limit", "compute.spike_threshold=null")]
    if compute.on_divergence == "stop":
        unread += [(name, "compute.on_divergence=stop") for name in ("rollback_margin", "rollback_limit")]
    for name, why in unread:
        if (value := getattr(compute, name)) != getattr(ComputeConfig, name):
            yield f"compute.{name}={value} has no effect with {why}; leave it out"


def _batch(config: Config) -> Iterator[str]:
    """Whether the global batch divides over ranks, micro-batches and groups of batch norm."""
    compute, cluster = config.compute, config.cluster
    batch, ranks = compute.global_batch, cluster.nodes * cluster.devices
    if batch % ranks:
        yield (
            f"compute.global_batch={batch} must be divisible by the {ranks} ranks (cluster.nodes x cluster.devices); "
            f"write {f'{batch // ranks * ranks} or ' if batch > ranks else ''}{(batch // ranks + 1) * ranks}"
        )
        return
    share = batch // ranks
    micro = cluster.micro_batch or share
    if share % micro:
        fit = max(size for size in range(1, min(micro, share) + 1) if share % size == 0)
        yield f"cluster.micro_batch={micro} must divide the {share} pairs of a rank; write {fit}"
        return
    if not config.model.vision.batch_norm or config.model.vision.locked:
        return
    group = compute.batch_norm_samples
    if batch % group:
        yield (
            f"compute.batch_norm_samples={group} must divide compute.global_batch={batch}; "
            f"write {math.gcd(group, batch) if math.gcd(group, batch) > 1 else batch}"
        )
    elif micro % group and (micro != share or group % share):
        # Groups lie inside a forward pass, or whole shares of ranks form them.
        mend = f"take {batch // group} ranks (cluster.nodes x cluster.devices)"
        if share % group == 0 or group % share == 0:
            mend = f"write cluster.micro_batch={group if share % group == 0 else 'null'}"
        yield (
            f"compute.batch_norm_samples={group}: {share} pairs on a rank, {micro} of them in a forward pass, form no "
            f"such groups; {mend}"
        )


def _lengths(config: Config) -> Iterator[str]:
    """Whether the parts of a run fit in it."""
    compute, pairs = config.compute, config.data.num_samples
    if duration.parse(compute.duration).unit == "run":
        yield f"compute.duration={compute.duration} cannot be a share of itself; write samples, steps or epochs"
        return
    if pairs is None and "epoch" in compute.duration:
        return  # counted when the data's index is read

    def samples(text: str, total: int | None) -> int:
        return duration.to_samples(text, global_batch=compute.global_batch, epoch_samples=pairs, total_samples=total)

    total = samples(compute.duration, None)
    if total == 0:
        yield f"compute.duration={compute.duration} is no training; write at least 1 steps"
        return
    if not (pairs is None and any("epoch" in phase.start for phase in compute.phases)):
        yield from phases.order_problems(config, total, pairs)
    parts = [compute.warmup, compute.cooldown]
    if pairs is None and any("epoch" in part for part in parts):
        return
    warmup, cooldown = (samples(part, total) for part in parts)
    if warmup + cooldown > total:
        what = f"compute.warmup={compute.warmup}" + (f" and compute.cooldown={compute.cooldown}" if cooldown else "")
        yield (
            f"{what} take {warmup + cooldown:,} samples and the whole run has {total:,} "
            f"(compute.duration={compute.duration}); write compute.warmup=5%"
        )
    if (keep := config.cluster.keep_every) is not None:
        often, rarely = samples(config.cluster.checkpoint_every, total), samples(keep, total)
        if not often or rarely < often:
            yield (
                f"cluster.keep_every={keep} is no longer than cluster.checkpoint_every="
                f"{config.cluster.checkpoint_every}; write a longer one, or null"
            )
    overfit = config.debug.overfit_samples
    if 0 < overfit < compute.global_batch:
        yield f"debug.overfit_samples={overfit} must be at least compute.global_batch={compute.global_batch}"


def _own_builder(section: str, target: str | None) -> Iterator[str]:
    """Whether the package of the user's own builder can be found; its code is not run yet."""
    if target is None:
        return
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", target):
        yield f"{section}._target_={target} must be an import path like my_package.my_module.build"
    elif importlib.util.find_spec(target.split(".")[0]) is None:
        package = target.split(".")[0]
        yield f"{section}._target_={target}: there is no package {package}; install it, or put its folder on PYTHONPATH"
