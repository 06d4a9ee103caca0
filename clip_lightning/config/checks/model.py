"""Whether the keys of `model` and `loss` agree with each other."""

import re
from collections.abc import Iterator

from clip_lightning.config import phases
from clip_lightning.config.schema import Config, TextConfig, VisionConfig

# Positions that these encoders count from behind their padding id.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
_RESNET_SIZES = {"resnet50x4_clip": 288, "resnet50x16_clip": 384, "resnet50x64_clip": 448}


def problems(config: Config) -> Iterator[str]:
    """One sentence for each problem."""
    yield from _fine_tuning(config)
    has_weights = config.model.pretrained is not None
    if config.model.allow_missing and not has_weights:
        yield "model.allow_missing has no effect without model.pretrained; leave it out"
    for name in ("vision", "text") if has_weights else ():
        if value := getattr(config.model, name).pretrained:
            yield (
                f"model.{name}.pretrained={value} has no effect beside model.pretrained={config.model.pretrained}, "
                "which has both towers' weights; leave one out"
            )
    yield from _vision(config.model.vision, has_weights)
    yield from _text(config.model.text, has_weights)
    yield from _loss(config)
    yield from _cached(config)


def _fine_tuning(config: Config) -> Iterator[str]:
    """Whether a recipe for one more epoch from published weights starts from weights."""
    model, rate = config.model, config.compute.learning_rate
    if model.name != "vit_l14_336" or rate is None or rate > 2e-5:
        return
    if model.pretrained is None and not (model.vision.pretrained and model.text.pretrained):
        yield (
            f"model=vit_l14_336 with compute.learning_rate={rate:g} and without pretrained weights: this is the "
            "paper's rate for one epoch from ViT-L/14's weights; fine-tune with model.vision.pretrained=PATH "
            'model.text.pretrained=PATH compute.duration="1 epochs" compute.warmup=5%, or train from scratch with '
            "compute.learning_rate=4e-4"
        )


def _vision(vision: VisionConfig, has_weights: bool) -> Iterator[str]:
    if bool(vision.timm) == bool(vision._target_):
        given = "both are set" if vision.timm else "neither is set"
        yield f"model.vision.timm and model.vision._target_: {given}, and exactly one of them builds the tower"
    if vision.locked and not (vision.pretrained or has_weights):
        yield (
            "model.vision.locked=true freezes random weights; set model.vision.pretrained to true or a path, or "
            "model.pretrained"
        )
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


def _text(text: TextConfig, has_weights: bool) -> Iterator[str]:
    config = text.config
    if not (text.huggingface or config or text._target_):
        yield "model.text names no encoder; set model.text.huggingface to a hub name or folder, or model.text.config"
    if text.locked and not (text.pretrained or has_weights):
        yield (
            "model.text.locked=true freezes random weights; set model.text.pretrained to true or a path, or "
            "model.pretrained"
        )
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
    if loss.name in ("softmax", "distill") and loss.logit_bias_init is not None:
        yield f"loss.logit_bias_init={loss.logit_bias_init} has no effect: a bias cancels in the softmax; write null"
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
            "cluster.cache_locked=true has no effect on images that augmentation changes in every epoch; "
            f"write {wanted}, or leave it out"
        )
