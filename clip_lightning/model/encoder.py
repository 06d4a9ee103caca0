"""Hugging Face encoders: from a config, a hub name or a folder to a module that trains every parameter.

Changes what training cannot use: poolers without gradient, decoders, dropout, ids that mean padding. Code from the hub
is never run.
"""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, SiglipTextModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from clip_lightning.config.keys import did_you_mean, near
from clip_lightning.config.schema import TextConfig
from clip_lightning.errors import UserError
from clip_lightning.model import initialization
from clip_lightning.model.vision import first_line
from clip_lightning.tokenizer import use_hub_cache_when_offline

# Towers that the library's own table of models does not list.
_UNLISTED = {"siglip_text_model": SiglipTextModel}


def build(config: TextConfig) -> Any:
    """The encoder: takes `input_ids` and gives `last_hidden_state` [B, L, W].

    Raises:
        UserError: unknown encoder or weights, no connection to the hub, a vocabulary or a context that does not fit.
    """
    architecture = _architecture(config)
    kind = _UNLISTED.get(architecture.model_type, AutoModel)
    on_meta = torch.get_default_device().type == "meta"
    if config.pretrained is False or on_meta:
        if isinstance(config.pretrained, str):
            _weights_folder(config.pretrained)
        build_random = kind.from_config if kind is AutoModel else kind
        try:
            encoder = build_random(architecture)
        except (ValueError, KeyError, TypeError, ImportError) as error:
            raise UserError(
                f"model.text: an encoder of model_type={architecture.model_type} cannot be built: {first_line(error)}"
            ) from error
    else:
        encoder = _load(kind, config, architecture)
    if getattr(architecture, "is_encoder_decoder", False):
        encoder = encoder.get_encoder()
    _drop_heads(encoder, keeps_pooler=config.pool == "pooler")
    _fit_tokens(encoder, config)
    if config.init == "openai" and config.pretrained is False:
        if not hasattr(getattr(encoder, "embeddings", None), "token_embedding"):
            raise UserError(
                f"model.text.init=openai is for towers of CLIP and SigLIP, and model_type={architecture.model_type} is "
                "neither; write model.text.init=huggingface"
            )
        initialization.text_transformer(encoder, architecture.num_hidden_layers)
    return encoder


def position_offset(encoder: nn.Module) -> int | None:
    """Where encoders of RoBERTa's family start to count; None where positions are counted from 0 or not at all.

    They find padding by its id, which may differ from this run's, so positions are passed to them.
    """
    padding_id = getattr(getattr(encoder, "embeddings", None), "padding_idx", None)
    takes_positions = "position_ids" in inspect.signature(encoder.forward).parameters
    return padding_id + 1 if padding_id is not None and takes_positions else None


def _architecture(config: TextConfig) -> PreTrainedConfig:
    """The inline configuration, or the hub's or folder's with the inline keys on top; dropout is 0 unless inline."""
    inline = dict(config.config)
    model_type = inline.pop("model_type", None)
    if model_type is not None:
        if model_type not in CONFIG_MAPPING:
            raise UserError(
                f"model.text.config.model_type={model_type} is unknown to transformers"
                + did_you_mean(near(str(model_type), list(CONFIG_MAPPING)))
            )
        try:
            architecture = AutoConfig.for_model(model_type, **inline)
        except Exception as error:  # its validation raises classes of several libraries
            raise UserError(f"model.text.config does not fit model_type={model_type}: {first_line(error)}") from error
    else:
        architecture = _published_config(config.huggingface, inline)
        architecture = getattr(architecture, "text_config", architecture)  # of a model of images and texts, its texts'
    for key, value in architecture.to_dict().items():
        if "drop" in key and key not in inline and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(architecture, key, 0.0)
    return architecture


def _published_config(name: str | None, inline: dict[str, Any]) -> PreTrainedConfig:
    if name is None:
        raise UserError(
            "model.text names no encoder; set model.text.huggingface to a hub name or a local folder, or "
            "model.text.config.model_type and its other keys"
        )
    if not Path(name).is_dir():
        use_hub_cache_when_offline()
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **inline)
    except Exception as error:  # the hub's client raises classes of several libraries
        if Path(name).is_dir():
            what = f"holds no configuration of an encoder ({first_line(error)}); it needs a config.json"
        else:
            what = "is no local folder, and the hub did not give it; check the name and the network"
        raise UserError(f"model.text.huggingface={name} {what}, or write the encoder into model.text.config") from error


def _weights_folder(path: str) -> str:
    if not Path(path).is_dir():
        raise UserError(
            f"model.text.pretrained={path} is no folder; write true for the weights of model.text.huggingface, or the "
            "path of a folder with config.json and model.safetensors"
        )
    return path


def _load(kind: Any, config: TextConfig, architecture: PreTrainedConfig) -> Any:
    """An encoder with weights of safetensors.

    Raises:
        UserError: they cannot be had, or are of another architecture.
    """
    source = _weights_folder(config.pretrained) if isinstance(config.pretrained, str) else config.huggingface
    key = f"model.text.pretrained={str(config.pretrained).lower() if config.pretrained is True else config.pretrained}"
    if source is None:
        raise UserError(f"{key} needs model.text.huggingface, the hub name of the weights, or write a path")
    if not Path(source).is_dir():
        use_hub_cache_when_offline()
    try:
        encoder, report = kind.from_pretrained(
            source, config=architecture, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # the hub's client raises classes of several libraries
        raise UserError(f"{key}: the weights of {source} cannot be had ({first_line(error)})") from error
    lacks = [name for name in report["missing_keys"] if "pooler" not in name]
    if lacks or report["mismatched_keys"]:
        example = f"they lack {sorted(lacks)[0]}" if lacks else "shapes differ"
        raise UserError(f"{key}: the weights of {source} are of another architecture: {example}; name another")
    return encoder


def _drop_heads(encoder: Any, keeps_pooler: bool) -> None:
    """Takes away what is behind the last hidden state: it would get no gradient, on which DDP stops.

    Raises: UserError: `model.text.pool=pooler` of an encoder that has no pooling layer.
    """
    has_pooler = isinstance(getattr(encoder, "pooler", None), nn.Module)
    if keeps_pooler and not has_pooler:
        raise UserError(
            f"model.text.pool=pooler: {type(encoder).__name__} has no pooling layer; write cls, mean or eot"
        )
    if has_pooler and not keeps_pooler:
        encoder.pooler = None
    if isinstance(encoder, SiglipTextModel):
        encoder.head = nn.Identity()


def _fit_tokens(encoder: Any, config: TextConfig) -> None:
    """Holds the encoder against the tokenizer's vocabulary and the context's length."""
    embedding = encoder.get_input_embeddings()
    rows, tokens = embedding.num_embeddings, config.tokenizer.vocab_size
    if rows != tokens:
        raise UserError(
            f"model.text.tokenizer.vocab_size={tokens} differs from the {rows} rows of the encoder's embedding; "
            "set it and the encoder's vocab_size to the same number"
        )
    if config.tokenizer.kind != "hub":
        # The id that the encoder treats as padding is a word of this tokenizer, and its row must be trained.
        embedding.padding_idx = None
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if isinstance(positions, int) and config.context_length > (room := positions - (position_offset(encoder) or 0)):
        raise UserError(
            f"model.text.context_length={config.context_length} is beyond the {room} positions of the encoder; "
            f"write {room} or less"
        )
