"""`config.json` of transformers' CLIP, SigLIP, ChineseCLIP and dual encoders as our configuration.

Keys that a file leaves out have the defaults of transformers' own classes, which are built from the file: they import
no torch.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clip_lightning.config.foreign import towers
from clip_lightning.config.schema import ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from clip_lightning.errors import UserError

KNOWN = ("clip", "siglip", "siglip2", "chinese_clip", "vision-text-dual-encoder", "metaclip_2")
_BILINEAR, _BICUBIC = 2, 3  # Pillow's numbers, which `preprocessor_config.json` has
# Text encoders whose pooling layer a dual encoder reads.
_POOLED = ("bert", "roberta", "xlm-roberta", "mpnet", "camembert", "electra")


def read(config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, tokenizer: str | None) -> ModelConfig:
    """Our configuration of a model of transformers.

    Args:
        config: content of config.json.
        preprocessor: content of preprocessor_config.json, where there is one.
        tokenizer: folder or hub name of the tokenizer's files; None: there are none.

    Raises:
        UserError: another `model_type`, or a tower that cannot be expressed here; the sentence has the reason.
    """
    kind = config.get("model_type")
    if kind not in KNOWN:
        raise UserError(f"config.json has model_type={kind}; known are {', '.join(KNOWN)}")
    if "auto_map" in config:
        raise UserError(
            "config.json has `auto_map`, code of its own, which is never run; remove the key if you trust it"
        )
    if kind in ("siglip", "siglip2"):
        model = _siglip(config, kind)
    elif kind == "vision-text-dual-encoder":
        model = _dual(config)
    else:
        model = _clip(config, chinese=kind == "chinese_clip")
    text = replace(model.text, tokenizer=_tokenizer(model.text, kind, tokenizer))
    return replace(model, vision=_pixels(model.vision, preprocessor or {}), text=text)


def _clip(config: Mapping[str, Any], chinese: bool) -> ModelConfig:
    embed_dim = int(config.get("projection_dim", 512))
    vision = _clip_vision(
        _full("chinese_clip_vision_model" if chinese else "clip_vision_model", config, "vision_config")
    )
    if chinese:
        text = _encoder({"model_type": "bert"} | dict(config.get("text_config") or {}), pool="cls", kind="bert")
    else:
        text = _clip_text(_full("clip_text_model", config, "text_config"))
    return ModelConfig(name="auto", embed_dim=embed_dim, vision=vision, text=text)


def _clip_vision(config: Mapping[str, Any]) -> VisionConfig:
    if config["layer_norm_eps"] != 1e-5:
        raise UserError(f"vision_config.layer_norm_eps={config['layer_norm_eps']}: timm's CLIP towers have 1e-5")
    return towers.clip_vit(
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        patch=config["patch_size"],
        pixels=config["image_size"],
        mlp_ratio=_ratio(config),
        activation=_activation(config),
    )


def _clip_text(config: Mapping[str, Any]) -> TextConfig:
    text = towers.text_transformer(
        kind="clip_text_model",
        vocab=config["vocab_size"],
        context=config["max_position_embeddings"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        intermediate=config["intermediate_size"],
        activation=_activation(config),
        eps=config["layer_norm_eps"],
    )
    end = config.get("eos_token_id")
    if isinstance(end, int) and 2 < end < config["vocab_size"]:  # 2 is a mistake of old files, not the end token
        text.config["eos_token_id"] = end
        if isinstance(config.get("bos_token_id"), int):
            text.config["bos_token_id"] = config["bos_token_id"]
    return text


def _siglip(config: Mapping[str, Any], kind: str) -> ModelConfig:
    vision, text = (
        _full(f"{kind}_vision_model", config, "vision_config"),
        _full(f"{kind}_text_model", config, "text_config"),
    )
    if not vision.get("vision_use_head", True):
        raise UserError("vision_config.vision_use_head=false: a tower without its attention pooling gives no feature")
    side = round(vision["num_patches"] ** 0.5) * vision["patch_size"] if kind == "siglip2" else vision["image_size"]
    tower = towers.siglip_vit(
        width=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        patch=vision["patch_size"],
        pixels=int(side),
        mlp_ratio=_ratio(vision),
        activation=_activation(vision),
    )
    encoder = towers.text_transformer(
        kind="siglip_text_model",
        vocab=text["vocab_size"],
        context=text["max_position_embeddings"],
        width=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        intermediate=text["intermediate_size"],
        activation=_activation(text),
        eps=text["layer_norm_eps"],
        pool="last",
        projection_bias=True,
    )
    width = text.get("projection_size") or text["hidden_size"]
    if width != vision["hidden_size"]:
        raise UserError(f"text_config.projection_size={width} differs from the image tower's {vision['hidden_size']}")
    return ModelConfig(name="auto", embed_dim=width, loss="sigmoid", vision=tower, text=encoder)


def _dual(config: Mapping[str, Any]) -> ModelConfig:
    vision, text = dict(config["vision_config"]), dict(config["text_config"])
    embed_dim = int(config.get("projection_dim", 512))
    kind = vision.get("model_type")
    if kind == "timm_wrapper":
        tower = _timm(vision, embed_dim)
    elif kind in ("clip_vision_model", "clip"):
        tower = _clip_vision(_full("clip_vision_model", {"vision_config": vision}, "vision_config"))
    else:
        raise UserError(
            f"vision_config.model_type={kind}: a dual encoder reads this tower's pooling layer, which timm does not "
            "have; known are clip_vision_model and timm_wrapper"
        )
    kind = text.get("model_type")
    if kind == "clip_text_model":
        encoder = _clip_text(_full("clip_text_model", {"text_config": text}, "text_config"))
    elif kind in _POOLED:
        encoder = _encoder(text, pool="pooler", kind=str(kind))
    else:
        raise UserError(
            f"text_config.model_type={kind}: the pooling of this encoder is not known; known are clip_text_model, "
            + ", ".join(_POOLED)
        )
    return ModelConfig(name="auto", embed_dim=embed_dim, vision=tower, text=encoder)


def _timm(config: Mapping[str, Any], embed_dim: int) -> VisionConfig:
    options = dict(config.get("model_args") or {})
    name = str(config["architecture"])
    pool = options.pop("global_pool", None)
    size = (config.get("pretrained_cfg") or {}).get("input_size", [3, 224, 224])[-1]
    has_head = bool(options.get("num_classes"))
    if not has_head:
        options.pop("num_classes", None)
    return VisionConfig(
        name="auto",
        timm=name,
        image_size=options.get("img_size", size),
        pool=pool,
        # A tower that has its own head gives the shared space itself.
        projection="none" if has_head and options["num_classes"] == embed_dim else "linear",
        batch_norm=bool((config.get("clip_lightning") or {}).get("batch_norm", "resnet" in name)),
        options=options,
    )


def _encoder(config: dict[str, Any], *, pool: str, kind: str) -> TextConfig:
    """A bidirectional encoder with its configuration inline."""
    left_out = ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "is_decoder")
    inline = {key: value for key, value in config.items() if key not in left_out and value is not None}
    inline["model_type"] = kind
    full = _full(kind, {"text_config": inline}, "text_config")
    offset = full["pad_token_id"] + 1 if kind in ("roberta", "xlm-roberta", "mpnet", "camembert") else 0
    return TextConfig(
        name="auto",
        config=inline | {"vocab_size": full["vocab_size"]},
        context_length=min(77, full["max_position_embeddings"] - offset),
        pool=pool,
        mask_padding=True,
    )


def _tokenizer(text: TextConfig, kind: str, folder: str | None) -> TokenizerConfig:
    """The tokenizer of the files; CLIP's own where the vocabulary is CLIP's and there are no files."""
    rows = int(text.config["vocab_size"])
    if folder is None:
        return TokenizerConfig(vocab_size=rows)
    is_papers = rows == 49408 and text.config["model_type"] == "clip_text_model"
    if is_papers:
        return TokenizerConfig(vocab_size=rows)
    clean = "canonical" if kind in ("siglip", "siglip2") else "none"
    return TokenizerConfig(kind="hub", path=folder, vocab_size=rows, clean=clean)


def _pixels(vision: VisionConfig, config: Mapping[str, Any]) -> VisionConfig:
    """The tower with what preprocessor_config.json says about colours and resize."""
    changed: dict[str, Any] = {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if isinstance(config.get(theirs), list):
            changed[ours] = config[theirs]
    if config.get("resample") in (_BILINEAR, _BICUBIC):
        changed["interpolation"] = "bilinear" if config["resample"] == _BILINEAR else "bicubic"
    if isinstance(size := config.get("size"), Mapping):
        changed["resize"] = "shortest" if "shortest_edge" in size else "squash"
    return replace(vision, **changed)


def _full(kind: str, config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """A part of a config.json with the defaults of transformers' class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    given = {key: value for key, value in (config.get(part) or {}).items() if key != "model_type"}
    try:
        return dict(CONFIG_MAPPING[kind](**given).to_dict())
    except Exception as error:  # its validation raises classes of several libraries
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"config.json: {part} does not fit {kind}: {reason}") from error


def _ratio(config: Mapping[str, Any]) -> float:
    return float(config["intermediate_size"] / config["hidden_size"])


def _activation(config: Mapping[str, Any]) -> str:
    name = str(config["hidden_act"])
    if name not in towers.ACTIVATIONS:
        raise UserError(f"hidden_act={name} is not known for towers of CLIP; known are {', '.join(towers.ACTIVATIONS)}")
    return name
