"""Files that `open_clip.create_model_from_pretrained("local-dir:DIR")` loads."""

import json
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file

from clip_lightning.config.foreign.towers import RESNET_PIXELS, RESNETS
from clip_lightning.errors import UserError
from clip_lightning.export import tokenizers as exported_tokenizers
from clip_lightning.export.describe import heads, text_kind, vit_shape
from clip_lightning.model.convert import open_clip as layout
from clip_lightning.training.any_model import OpenedModel

# Encoders that open_clip's adapter knows, by transformers' model_type.
_ENCODERS = ("bert", "roberta", "xlm-roberta", "mt5", "m2m_100")
_POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler", "pooler": "cls_pooler"}
_TANH = {"approximate": "tanh"}
_RESNET_WIDTHS = {"resnet50x4_clip": 80, "resnet50x16_clip": 96, "resnet50x64_clip": 128}
_ELSEWHERE = "safetensors and onnx can hold it where open_clip cannot"


def export(opened: OpenedModel, folder: Path) -> None:
    """Writes configuration, weights and tokenizer.

    Raises: UserError: open_clip has no such tower; the sentence has the reason and a format that does.
    """
    config = config_of(opened)
    own = layout.export(
        opened.model.state_dict(),
        native_vision="timm_model_name" not in config["vision_cfg"],
        native_text="hf_model_name" not in config["text_cfg"],
        custom_text=bool(config.get("custom_text")),
    )
    preprocess = {
        "mean": list(opened.config.vision.mean),
        "std": list(opened.config.vision.std),
        "interpolation": opened.config.vision.interpolation,
        "resize_mode": opened.config.vision.resize,
    }
    if opened.config.text.tokenizer.kind != "paper":
        exported_tokenizers.write(opened, folder)
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous().clone() for name, value in own.items()}, folder / "open_clip_model.safetensors")


def config_of(opened: OpenedModel) -> dict[str, Any]:
    """open_clip's `model_cfg`. Raises UserError as `export`."""
    vision, vision_activation = _vision(opened)
    text, text_activation = _text(opened)
    quick = {vision_activation, text_activation} - {None}
    if len(quick) > 1:
        raise UserError(
            "open_clip has one activation for both towers, and this image tower has another one than the text tower; "
            f"{_ELSEWHERE}"
        )
    if text_activation == "gelu_pytorch_tanh":
        text["act_kwargs"] = _TANH
        if vision_activation is not None:
            vision["act_kwargs"] = _TANH
    config: dict[str, Any] = {"embed_dim": opened.config.embed_dim, "vision_cfg": vision, "text_cfg": text}
    if "quick_gelu" in quick:
        config["quick_gelu"] = True
    is_plain = "no_causal_mask" not in text and "proj_bias" not in text and "hf_tokenizer_name" not in text
    if "timm_model_name" in vision or "hf_model_name" in text or not is_plain or "norm_kwargs" in text:
        config["custom_text"] = True
    if opened.model.logit_bias is not None:
        config["init_logit_bias"] = float(opened.model.logit_bias)
    return config


def _vision(opened: OpenedModel) -> tuple[dict[str, Any], str | None]:
    """`vision_cfg`, and the activation where open_clip sets it."""
    config, backbone = opened.config.vision, opened.model.vision.backbone
    architecture = str(config.timm).split(".")[0]
    end, pixels = heads(opened.model)[0], config.image_size
    if architecture in RESNETS.values() and end == "none":
        layers = next(list(stages) for stages, name in RESNETS.items() if name == architecture)
        return {"layers": layers, "width": _RESNET_WIDTHS.get(architecture, 64), "image_size": pixels}, None
    shape = vit_shape(backbone, pixels)
    if shape is not None and shape.is_clips and end == "linear":
        found: dict[str, Any] = {"layers": shape.layers, "width": shape.width, "patch_size": shape.patch}
        found |= {"image_size": pixels, "head_width": shape.width // shape.heads}
        found["mlp_ratio"] = shape.intermediate / shape.width
        if shape.has_layer_scale:
            found["ls_init_value"] = 1e-5
        return found, shape.activation
    allowed = {"num_classes": opened.config.embed_dim}
    if config._target_ is not None or architecture == "small_resnet":
        raise UserError(
            f"open_clip builds image towers of timm, and {config._target_ or architecture} is none; {_ELSEWHERE}"
        )
    if further := {key: value for key, value in config.options.items() if allowed.get(key) != value}:
        raise UserError(
            f"open_clip builds timm's {architecture} without arguments, and this one has {further}; {_ELSEWHERE}"
        )
    built_for = timm.get_pretrained_cfg(architecture)
    if built_for.fixed_input_size and built_for.input_size[-1] != pixels:
        raise UserError(
            f"open_clip builds timm's {architecture} for {built_for.input_size[-1]} pixels, and this one has {pixels}; "
            f"{_ELSEWHERE}"
        )
    projection: str | None = {"none": "none", "linear": "linear", "bias": "linear", "mlp": "mlp"}[end]
    if config.options.get("num_classes"):
        projection = None
    tower = {"timm_model_name": architecture, "timm_model_pretrained": False, "timm_proj": projection}
    tower["timm_pool"] = config.pool or ""
    if projection in ("none", None) and config.pool is None:
        tower["timm_pool"] = getattr(backbone, "global_pool", "avg") or ""
    if config.projection_bias:
        tower["timm_proj_bias"] = True
    return tower | {"image_size": pixels}, None


def _text(opened: OpenedModel) -> tuple[dict[str, Any], str | None]:
    """`text_cfg`, and the activation where open_clip sets it."""
    kind, config, end = text_kind(opened.model), opened.config.text, heads(opened.model)[1]
    if kind not in ("clip_text_model", "siglip_text_model"):
        return _encoder(opened, kind, end), None
    tower: Any = opened.model.text
    encoder = tower.encoder.config
    found: dict[str, Any] = {
        "context_length": encoder.max_position_embeddings,
        "vocab_size": encoder.vocab_size,
        "width": encoder.hidden_size,
        "heads": encoder.num_attention_heads,
        "layers": encoder.num_hidden_layers,
    }
    if encoder.intermediate_size != 4 * encoder.hidden_size:
        found["mlp_ratio"] = encoder.intermediate_size / encoder.hidden_size
    if encoder.layer_norm_eps != 1e-5:
        found["norm_kwargs"] = {"eps": encoder.layer_norm_eps}
    if kind == "siglip_text_model":
        found["no_causal_mask"] = True
    pools = {"eot": "argmax", "last": "last", "cls": "first"}
    if config.pool not in pools or end not in ("linear", "bias"):
        raise UserError(
            f"open_clip's text transformer has no pooling {config.pool} with a projection {end}; {_ELSEWHERE}"
        )
    found["pool_type"] = pools[config.pool]
    tokenizer = opened.tokenizer
    if config.pool == "eot" and tokenizer.end_id != tokenizer.vocab_size - 1:
        found |= {"pool_type": "eos", "eos_id": tokenizer.end_id}
    if end == "bias":
        found["proj_bias"] = True
    if config.tokenizer.kind != "paper":
        found |= _tokenizer(opened)
    return found, str(encoder.hidden_act)


def _encoder(opened: OpenedModel, kind: str, end: str) -> dict[str, Any]:
    config = opened.config.text
    if kind not in _ENCODERS or config.pool not in _POOLERS or end not in ("linear", "mlp"):
        raise UserError(
            f"open_clip has no text tower {kind} with pooling {config.pool} and projection {end}; it has "
            f"{', '.join(_ENCODERS)} with mean, cls or pooler; {_ELSEWHERE}"
        )
    if config.huggingface is None:
        raise UserError(
            "open_clip builds an encoder of Hugging Face from its hub name or folder, and this run has none; set "
            f"model.text.huggingface, which may stand beside model.text.config; {_ELSEWHERE}"
        )
    return {
        "hf_model_name": config.huggingface,
        "hf_model_pretrained": False,
        "hf_pooler_type": _POOLERS[config.pool],
        "hf_proj_type": end,
        "context_length": config.context_length,
        **_tokenizer(opened),
    }


def _tokenizer(opened: OpenedModel) -> dict[str, Any]:
    """What makes open_clip read the tokenizer's files beside the weights."""
    config = opened.config.text.tokenizer
    cleans = {"canonical": "canonicalize", "none": "whitespace", "whitespace": "whitespace"}
    settings: dict[str, Any] = {"clean": "lower" if config.kind == "trained" else cleans[config.clean]}
    if config.strip_separator:
        settings["strip_sep_token"] = True
    return {"hf_tokenizer_name": config.path or "tokenizer.json", "tokenizer_kwargs": settings}


def pixels_of(architecture: str) -> int:
    """The size that a ResNet of CLIP is built for."""
    return RESNET_PIXELS.get(architecture, 224)
