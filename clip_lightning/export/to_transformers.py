"""Files for transformers' AutoModel and AutoProcessor: CLIPModel, SiglipModel, ChineseCLIPModel or a dual encoder.

Pixels are those of the model's own image processor in transformers; docs/weights.md has the differences. The tokenizer
is CLIP's where the run has CLIP's, otherwise the run's own files.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from clip_lightning.config.schema import ModelConfig, VisionConfig
from clip_lightning.errors import UserError
from clip_lightning.export import tokenizers as exported_tokenizers
from clip_lightning.export.describe import VitShape, heads, text_kind, vit_shape
from clip_lightning.model.convert import transformers as layout
from clip_lightning.training.any_model import OpenedModel

_CLASSES = {
    "clip": (transformers.CLIPConfig, transformers.CLIPModel),
    "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
    "chinese_clip": (transformers.ChineseCLIPConfig, transformers.ChineseCLIPModel),
}
_TOKENS = "text_model.embeddings.token_embedding.weight"
_ELSEWHERE = "open_clip, onnx and safetensors can hold it where transformers cannot"
# Encoders whose pooling layer is what a dual encoder reads.
_WITH_POOLER = ("bert", "roberta", "xlm-roberta", "mpnet", "camembert", "electra")


def export(opened: OpenedModel, folder: Path) -> Any:
    """Writes the files, and returns the model of transformers that was written.

    Raises: UserError: no class of transformers has these towers; the sentence has the reason and a format that does.
    """
    kind, reason = kind_of(opened)
    if kind is None:
        raise UserError(f"transformers has no class for this model: {reason}; {_ELSEWHERE}")
    theirs = build(opened, kind)
    exported_tokenizers.write(opened, folder)
    image_processor(opened.config.vision).save_pretrained(folder)
    theirs.save_pretrained(folder)
    return theirs


def build(opened: OpenedModel, kind: str) -> Any:
    """The model of transformers with our weights, in evaluation mode."""
    state = opened.model.state_dict()
    if kind == "vision-text-dual-encoder":
        theirs = transformers.VisionTextDualEncoderModel(dual_config(opened))
    else:
        config_class, model_class = _CLASSES[kind]
        theirs = model_class(config_class(**config_of(opened, kind)))
    exported = layout.export(state, kind)
    if (end := exported_tokenizers.moved_end(opened)) is not None:
        table = exported[_TOKENS] = exported[_TOKENS].clone()
        table[[opened.tokenizer.end_id, end]] = table[[end, opened.tokenizer.end_id]]
    theirs.load_state_dict(exported)
    return theirs.eval()


def kind_of(opened: OpenedModel) -> tuple[str | None, str]:
    """The `model_type` that expresses a model, or None with the reason."""
    model, text, config = opened.model, text_kind(opened.model), opened.config
    shape = vit_shape(model.vision.backbone, config.vision.image_size)
    ends, pool = heads(model), config.text.pool
    is_clips_vision = shape is not None and shape.is_clips and not shape.has_layer_scale
    if is_clips_vision and ends == ("linear", "linear"):
        if text == "clip_text_model" and pool == "eot":
            return "clip", ""
        if text == "bert" and pool == "cls":
            return "chinese_clip", ""
    if shape is not None and shape.is_siglips and text == "siglip_text_model" and ends == ("none", "bias"):
        return "siglip", ""
    return _dual_or_reason(opened, text, ends)


def _dual_or_reason(opened: OpenedModel, text: str, ends: tuple[str, str]) -> tuple[str | None, str]:
    """Whether a dual encoder of timm's wrapper and an encoder has this model."""
    config = opened.config
    if config.vision._target_ is not None or config.vision.timm is None or config.vision.timm == "small_resnet":
        return None, f"the image tower {config.vision.timm or config.vision._target_} is not one that timm alone has"
    if ends[0] not in ("none", "linear") or ends[1] != "linear":
        return None, f"a dual encoder projects linearly without a bias, and these towers end with {' and '.join(ends)}"
    if config.vision.options.get("num_classes"):
        return None, "timm's tower ends with a layer that has a bias, which transformers' wrapper leaves out"
    if text == "clip_text_model" and config.text.pool == "eot":
        return "vision-text-dual-encoder", ""
    if text in _WITH_POOLER and config.text.pool == "pooler":
        return "vision-text-dual-encoder", ""
    how = f"this text tower ({text}) pools by {config.text.pool}"
    return None, f"a dual encoder reads the encoder's own pooling layer, and {how}"


def config_of(opened: OpenedModel, kind: str) -> dict[str, Any]:
    """The arguments of transformers' configuration class."""
    shape = vit_shape(opened.model.vision.backbone, opened.config.vision.image_size)
    assert shape is not None
    text = _text_config(opened)
    if kind == "siglip":
        text["projection_size"] = opened.config.embed_dim
    own = {"text_config": text, "vision_config": _vision_config(shape)}
    return own if kind == "siglip" else own | {"projection_dim": opened.config.embed_dim}


def dual_config(opened: OpenedModel) -> Any:
    """The configuration of a dual encoder with timm's tower."""
    from clip_lightning.model.vision import timm_arguments

    vision = opened.config.vision
    arguments = {key: value for key, value in timm_arguments(vision).items() if key != "num_classes"}
    tower = transformers.TimmWrapperConfig(
        architecture=str(vision.timm).split(".")[0],
        model_args=arguments,
        pretrained_cfg={"input_size": [3, vision.image_size, vision.image_size]},
        hidden_size=opened.model.vision.width,
        clip_lightning={"batch_norm": vision.batch_norm},
    )
    return transformers.VisionTextDualEncoderConfig(
        vision_config=tower.to_dict(),
        text_config=_text_config(opened) | {"model_type": text_kind(opened.model)},
        projection_dim=opened.config.embed_dim,
    )


def image_processor(vision: VisionConfig) -> Any:
    """transformers' image processor with the resize, size and colours of a tower.

    Raises: UserError: there is none for the resize.
    """
    from PIL.Image import Resampling

    size, bilinear = vision.image_size, vision.interpolation == "bilinear"
    common: dict[str, Any] = {"image_mean": list(vision.mean), "image_std": list(vision.std)}
    common["resample"] = int(Resampling.BILINEAR if bilinear else Resampling.BICUBIC)
    if vision.resize == "shortest":
        crop = {"height": size, "width": size}
        return transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size=crop, **common)
    if vision.resize == "squash":
        return transformers.SiglipImageProcessor(size={"height": size, "width": size}, **common)
    raise UserError("transformers' image processors have no resize of the long side with padding; export to open_clip")


def input_tensors(opened: OpenedModel, tokens: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """The arguments of transformers' `get_text_features` for a batch of ours."""
    arguments = {"input_ids": tokens}
    if opened.config.text.mask_padding:
        arguments["attention_mask"] = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    return arguments


def _vision_config(shape: VitShape) -> dict[str, Any]:
    return {
        "hidden_size": shape.width,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "image_size": shape.pixels,
        "patch_size": shape.patch,
        "hidden_act": shape.activation,
        "layer_norm_eps": shape.eps,
    }


def _text_config(opened: OpenedModel) -> dict[str, Any]:
    """The encoder's own configuration with the tokenizer's special tokens."""
    left_out = ("architectures", "transformers_version", "dtype", "_name_or_path", "model_type")
    encoder: Any = opened.model.text.encoder
    found = {key: value for key, value in encoder.config.to_dict().items() if key not in left_out}
    tokenizer = opened.tokenizer
    moved = exported_tokenizers.moved_end(opened)
    ids = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id if moved is None else moved}
    return found | {key: value for key, value in ids.items() if value is not None}


def parts_of(config: ModelConfig) -> str:
    """The towers of a model, for messages."""
    return f"{config.vision.timm} with {config.text.config.get('model_type', config.text.huggingface)}"
