"""open_clip's model configurations (its JSON files, `open_clip_config.json` of a repository) as ours."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clip_lightning.config.foreign import towers
from clip_lightning.config.foreign.hub_towers import HUB_TOWERS
from clip_lightning.config.schema import ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from clip_lightning.errors import UserError

# Settings of open_clip's own transformers that timm and transformers have no name for.
_NOT_EXPRESSED = (
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
)
_POOLERS = {"mean_pooler": "mean", "cls_last_hidden_state_pooler": "cls", "cls_pooler": "pooler"}
# Encoders without a pooling layer, of which `cls_pooler` takes the first position.
_WITHOUT_POOLER = ("m2m_100", "mt5", "t5")
# Image towers of timm that normalise over the batch.
_BATCH_NORM = ("fastvit", "vit_base_mci", "resnet")


def read(
    config: Mapping[str, Any], preprocess: Mapping[str, Any] | None = None, tokenizer: str | None = None
) -> ModelConfig:
    """Our configuration of a model of open_clip.

    Args:
        config: `embed_dim`, `vision_cfg`, `text_cfg` and what else open_clip's `create_model` takes.
        preprocess: `preprocess_cfg` of a repository: size, mean, std, resize mode, interpolation.
        tokenizer: folder with the files of a tokenizer; None: the name in the configuration.

    Raises:
        UserError: the model cannot be expressed here; the sentence has the reason.
    """
    if "multimodal_cfg" in config:
        raise UserError("a CoCa model has a caption decoder, which is not a contrastive tower; it is not carried over")
    quick, embed_dim = bool(config.get("quick_gelu")), int(config["embed_dim"])
    vision = _vision(config["vision_cfg"], embed_dim, quick)
    vision = _pixels(vision, preprocess or {})
    text = _text(config["text_cfg"], embed_dim, quick, tokenizer)
    loss = "sigmoid" if config.get("init_logit_bias") is not None else "softmax"
    return ModelConfig(name="auto", embed_dim=embed_dim, loss=loss, vision=vision, text=text)


def _vision(config: Mapping[str, Any], embed_dim: int, quick: bool) -> VisionConfig:
    if "timm_model_name" in config:
        return _timm(config, embed_dim)
    _refuse("vision_cfg", config, [*_NOT_EXPRESSED, "attentional_pool"])
    layers, pixels, width = config.get("layers", 12), config.get("image_size", 224), config.get("width", 768)
    if not isinstance(layers, int):
        found = towers.resnet(tuple(layers), embed_dim, pixels)
        if found is None:
            raise UserError(f"vision_cfg.layers={layers}: timm has no ResNet of CLIP with these stages")
        return found
    if config.get("pos_embed_type", "learnable") != "learnable" or config.get("norm_kwargs"):
        raise UserError("vision_cfg: fixed positions and norms with another epsilon have no tower in timm")
    options: dict[str, Any] = {}
    if config.get("no_ln_pre"):
        options["pre_norm"] = False
    if config.get("ls_init_value") is not None:
        options["init_values"] = config["ls_init_value"]
    pool = None
    if config.get("pool_type", "tok") != "tok":
        if not config.get("final_ln_after_pool"):
            raise UserError("vision_cfg.pool_type=avg without final_ln_after_pool has no tower in timm")
        pool = "avg"
    vision = towers.clip_vit(
        width=width,
        layers=layers,
        heads=width // config.get("head_width", 64),
        patch=config.get("patch_size", 16),
        pixels=pixels,
        mlp_ratio=config.get("mlp_ratio", 4.0),
        activation=_activation(config, quick),
        **options,
    )
    return replace(vision, pool=pool)


def _timm(config: Mapping[str, Any], embed_dim: int) -> VisionConfig:
    """A tower of timm as open_clip's adapter builds it."""
    name, pool, projection = (
        config["timm_model_name"],
        config.get("timm_pool", "avg"),
        config.get("timm_proj", "linear"),
    )
    if pool in ("abs_attn", "rot_attn"):
        raise UserError(f"vision_cfg.timm_pool={pool}: attention pooling of open_clip's own has no tower in timm")
    # Without a projection of open_clip's the classifier of the tower projects; `none`: nothing does.
    options = {"num_classes": embed_dim} if not projection else {}
    keeps_default = projection in ("linear", "mlp") and not pool
    return VisionConfig(
        name="auto",
        timm=name,
        image_size=config.get("image_size", 224),
        pool=None if keeps_default else pool,
        projection=projection if projection in ("linear", "mlp") else "none",
        projection_bias=bool(config.get("timm_proj_bias")),
        batch_norm=name.startswith(_BATCH_NORM),
        options=options,
    )


def _text(config: Mapping[str, Any], embed_dim: int, quick: bool, folder: str | None) -> TextConfig:
    if config.get("hf_model_name"):
        return _hugging_face(config, embed_dim, folder)
    _refuse("text_cfg", config, [*_NOT_EXPRESSED, "embed_cls", "final_ln_after_pool"])
    if config.get("ls_init_value") is not None:
        raise UserError("text_cfg.ls_init_value: transformers' text towers have no layer scale")
    width, pool = config.get("width", 512), config.get("pool_type", "argmax")
    context, vocab = config.get("context_length", 77), config.get("vocab_size", 49408)
    bidirectional = bool(config.get("no_causal_mask"))
    eos = {"eos": config.get("eos_id", 2), "argmax": None}.get(pool)
    text = towers.text_transformer(
        kind="siglip_text_model" if bidirectional else "clip_text_model",
        vocab=vocab,
        context=context,
        width=width,
        layers=config.get("layers", 12),
        heads=config.get("heads", 8),
        intermediate=int(width * config.get("mlp_ratio", 4.0)),
        activation=_activation(config, quick),
        eps=(config.get("norm_kwargs") or {}).get("eps", 1e-5),
        pool={"argmax": "eot", "eos": "eot", "last": "last", "first": "cls"}[pool],
        projection=config.get("proj_type", "linear"),
        projection_bias=bool(config.get("proj_bias")),
        tokenizer=_tokenizer(config, vocab, folder),
    )
    if eos is not None:
        text.config |= {"bos_token_id": 0, "eos_token_id": eos}
    return text


def _hugging_face(config: Mapping[str, Any], embed_dim: int, folder: str | None) -> TextConfig:
    name, pooler = config["hf_model_name"], config.get("hf_pooler_type", "mean_pooler")
    inline = dict(HUB_TOWERS.get(name) or _published(name))
    pool = _POOLERS.get(pooler)
    if pool is None:
        raise UserError(f"text_cfg.hf_pooler_type={pooler}: there is no such pooling here")
    if pool == "pooler" and inline.get("model_type") in _WITHOUT_POOLER:
        pool = "cls"
    vocab = inline.get("vocab_size", config.get("vocab_size", 0))
    context = config.get("context_length", 77)
    positions = inline.get("max_position_embeddings")
    return TextConfig(
        name="auto",
        huggingface=name,
        config=inline if name in HUB_TOWERS else {},
        context_length=min(context, positions) if isinstance(positions, int) else context,
        pool=pool,
        mask_padding=True,
        projection=config.get("hf_proj_type", "mlp") or "none",
        tokenizer=_tokenizer(config, vocab, folder),
    )


def _published(name: str) -> dict[str, Any]:
    """The configuration of an encoder of the hub, or in a folder. Raises UserError where it cannot be had."""
    from transformers import AutoConfig

    try:
        return dict(AutoConfig.from_pretrained(name, trust_remote_code=False).to_dict())
    except Exception as error:  # the hub's client raises classes of several libraries
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"text_cfg.hf_model_name={name}: its configuration cannot be had ({reason})") from error


def _tokenizer(config: Mapping[str, Any], vocab: int, folder: str | None) -> TokenizerConfig:
    name = config.get("hf_tokenizer_name")
    if not name:
        return TokenizerConfig(vocab_size=vocab)
    settings = config.get("tokenizer_kwargs") or {}
    return TokenizerConfig(
        kind="hub",
        path=folder or name,
        vocab_size=vocab,
        clean="canonical" if settings.get("clean") == "canonicalize" else "whitespace",
        strip_separator=bool(settings.get("strip_sep_token")),
    )


def _pixels(vision: VisionConfig, preprocess: Mapping[str, Any]) -> VisionConfig:
    """The tower with the size, colours and resize of `preprocess_cfg`, where it has them."""
    changed = {key: preprocess[key] for key in ("mean", "std", "interpolation") if preprocess.get(key)}
    changed = {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}
    if preprocess.get("resize_mode"):
        changed["resize"] = preprocess["resize_mode"]
    if changed.get("interpolation") == "random":
        changed["interpolation"] = "bicubic"  # what open_clip's evaluation takes for it
    return replace(vision, **changed)


def _activation(config: Mapping[str, Any], quick: bool) -> str:
    if quick:
        return "quick_gelu"
    return "gelu_pytorch_tanh" if (config.get("act_kwargs") or {}).get("approximate") == "tanh" else "gelu"


def _refuse(part: str, config: Mapping[str, Any], keys: list[str]) -> None:
    """Raises UserError where one of the keys is set."""
    if found := [key for key in keys if config.get(key)]:
        raise UserError(f"{part}.{found[0]}={config[found[0]]} has no tower in timm or transformers; not carried over")
