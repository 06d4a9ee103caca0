"""Weights of transformers' CLIPModel, SiglipModel, Siglip2Model, ChineseCLIPModel and VisionTextDualEncoderModel.

Their image towers are vision transformers that timm has too, with q, k and v in three parts where timm has one. Their
text towers are the encoders that ours are. Shapes: D width, P side of a patch in pixels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from clip_lightning.model.convert.names import Names, below, join, split, under
from clip_lightning.model.convert.open_clip import scalars_to_ours

_VISION = Names(
    ("embeddings.class_embedding", "backbone.cls_token"),
    ("embeddings.position_embedding.weight", "backbone.pos_embed"),
    ("embeddings.patch_embedding.{w}", "backbone.patch_embed.proj.{w}"),
    ("pre_layrnorm.{w}", "backbone.norm_pre.{w}"),  # their spelling
    ("post_layernorm.{w}", "backbone.norm.{w}"),
    ("encoder.layers.{n}.layer_norm1.{w}", "backbone.blocks.{n}.norm1.{w}"),
    ("encoder.layers.{n}.layer_norm2.{w}", "backbone.blocks.{n}.norm2.{w}"),
    ("encoder.layers.{n}.self_attn.qkv.{w}", "backbone.blocks.{n}.attn.qkv.{w}"),
    ("encoder.layers.{n}.self_attn.out_proj.{w}", "backbone.blocks.{n}.attn.proj.{w}"),
    ("encoder.layers.{n}.mlp.fc1.{w}", "backbone.blocks.{n}.mlp.fc1.{w}"),
    ("encoder.layers.{n}.mlp.fc2.{w}", "backbone.blocks.{n}.mlp.fc2.{w}"),
    ("head.probe", "backbone.attn_pool.latent"),
    ("head.attention.q.{w}", "backbone.attn_pool.q.{w}"),
    ("head.attention.kv.{w}", "backbone.attn_pool.kv.{w}"),
    ("head.attention.out_proj.{w}", "backbone.attn_pool.proj.{w}"),
    ("head.layernorm.{w}", "backbone.attn_pool.norm.{w}"),
    ("head.mlp.fc1.{w}", "backbone.attn_pool.mlp.fc1.{w}"),
    ("head.mlp.fc2.{w}", "backbone.attn_pool.mlp.fc2.{w}"),
)
_WHOLE = "encoder.layers.{n}.self_attn.qkv.{w}"
_QKV = [f"encoder.layers.{{n}}.self_attn.{part}_proj.{{w}}" for part in "qkv"]
_POOLING, _POOLING_PARTS = "head.attention.in_proj_{w}", ["head.attention.q.{w}", "head.attention.kv.{w}"]
_TIMM = "timm_model."  # what transformers' wrapper of timm puts before the names


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of any of these models in ours. Raises KeyError for a name that none of them has."""
    state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    vision = convert_vision(below(state, "vision_model."))
    text = below(state, "text_model.")
    ours = under("vision.", vision) | under("text.encoder.", {k: v for k, v in text.items() if not _is_head(k)})
    ours |= under("text.projection.", below(text, "head.") | below(state, "text_projection."))
    projection = below(state, "visual_projection.")
    # A tower that already gives the shared space is exported with the unit matrix.
    if projection and not _is_unit(projection["weight"]):
        ours |= under("vision.projection.", projection)
    heads = ("vision_model.", "text_model.", "text_projection.", "visual_projection.", "logit_")
    if unknown := [name for name in state if not name.startswith(heads)]:
        raise KeyError(unknown[0])
    return ours | scalars_to_ours(state)


def convert_vision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An image tower without its projection in ours."""
    if any(name.startswith(_TIMM) for name in state):
        return under("backbone.", below(state, _TIMM))
    state = split(state, _POOLING, _POOLING_PARTS, (1, 2))
    ours = {_VISION.to_ours(name): value for name, value in join(state, _WHOLE, _QKV).items()}
    leading = {"backbone.cls_token": (None, None), "backbone.pos_embed": (None,)}
    ours = {name: value[leading.get(name, ())] for name, value in ours.items()}
    patches = "backbone.patch_embed.proj.weight"
    if patches in ours and ours[patches].ndim == 2:  # Siglip2's layer reads patches as rows of [P, P, 3]
        side = round((ours[patches].shape[1] // 3) ** 0.5)
        ours[patches] = ours[patches].reshape(-1, side, side, 3).permute(0, 3, 1, 2).contiguous()
    return ours


def export(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """A state dict of ours in the layout of a class of transformers.

    Args: kind: its `model_type`: clip, siglip, chinese_clip, or vision-text-dual-encoder.
    Raises: KeyError: the tower has a tensor that the layout lacks.
    """
    vision, encoder = below(state, "vision."), below(state, "text.encoder.")
    projection = {name: value for name, value in vision.items() if name.startswith("projection.")}
    backbone = {name: value for name, value in vision.items() if name not in projection}
    if kind == "vision-text-dual-encoder":
        theirs = under(f"vision_model.{_TIMM}", below(backbone, "backbone."))
    else:
        theirs = under("vision_model.", export_vision(backbone))
    theirs |= under("text_model.", encoder)
    theirs |= under("text_model.head." if kind == "siglip" else "text_projection.", below(state, "text.projection."))
    theirs |= {f"visual_{name}": value for name, value in projection.items()}
    if kind == "vision-text-dual-encoder" and not projection:
        width = theirs["text_projection.weight"].shape[0]
        theirs["visual_projection.weight"] = torch.eye(width)
    theirs["logit_scale"] = state["log_logit_scale"].reshape((1,) if kind == "siglip" else ())
    if kind == "siglip":
        theirs["logit_bias"] = state["logit_bias"] if "logit_bias" in state else torch.zeros(1)
    return theirs


def export_vision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An image tower of ours in transformers' layout of CLIP and SigLIP."""
    back = {"backbone.cls_token": (0, 0), "backbone.pos_embed": (0,)}
    theirs = {_VISION.to_theirs(name): value[back.get(name, ())] for name, value in state.items()}
    theirs = split(theirs, _WHOLE, _QKV, (1, 1, 1))
    return join(theirs, _POOLING, _POOLING_PARTS)


def _is_head(name: str) -> bool:
    """Whether a tensor of a text tower is SigLIP's projection, which ours keeps beside the encoder."""
    return name.startswith("head.")


def _is_unit(weight: Tensor) -> bool:
    return weight.shape[0] == weight.shape[1] and torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype))
