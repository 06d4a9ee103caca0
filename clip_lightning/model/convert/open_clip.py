"""Weights of open_clip and of OpenAI's CLIP, whose layout open_clip keeps, as weights of ours and back.

open_clip has two layouts: `CLIP`, with the text tower's names at the top, and `CustomTextCLIP`, with all of them below
`text.`. A tower of timm is below `visual.trunk.`, an encoder of Hugging Face below `text.transformer.`.
Shapes: D width of a tower, E width of the shared space.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from clip_lightning.model.convert.names import Names, below, join, split, under

_BLOCK_OF_TEXT = (
    ("transformer.resblocks.{n}.ln_1.{w}", "encoder.layers.{n}.layer_norm1.{w}"),
    ("transformer.resblocks.{n}.ln_2.{w}", "encoder.layers.{n}.layer_norm2.{w}"),
    ("transformer.resblocks.{n}.attn.in_{rest}", "encoder.layers.{n}.self_attn.in_{rest}"),
    ("transformer.resblocks.{n}.attn.out_proj.{w}", "encoder.layers.{n}.self_attn.out_proj.{w}"),
    ("transformer.resblocks.{n}.mlp.c_fc.{w}", "encoder.layers.{n}.mlp.fc1.{w}"),
    ("transformer.resblocks.{n}.mlp.c_proj.{w}", "encoder.layers.{n}.mlp.fc2.{w}"),
)
_TEXT = Names(
    ("token_embedding.weight", "encoder.embeddings.token_embedding.weight"),
    ("positional_embedding", "encoder.embeddings.position_embedding.weight"),
    ("ln_final.{w}", "encoder.final_layer_norm.{w}"),
    *((theirs, f"encoder.{ours}") for theirs, ours in _BLOCK_OF_TEXT),
    ("text_projection", "projection.weight"),
)
_LINEAR_TEXT = ("text_projection.{w}", "projection.{w}")  # a layer with a bias is not transposed
_WHOLE = "encoder.encoder.layers.{n}.self_attn.in_proj_{w}"
_QKV = [f"encoder.encoder.layers.{{n}}.self_attn.{part}_proj.{{w}}" for part in "qkv"]
_VIT = Names(
    ("class_embedding", "backbone.cls_token"),
    ("positional_embedding", "backbone.pos_embed"),
    ("conv1.{w}", "backbone.patch_embed.proj.{w}"),
    ("ln_pre.{w}", "backbone.norm_pre.{w}"),
    ("ln_post.{w}", "backbone.norm.{w}"),
    ("transformer.resblocks.{n}.ln_1.{w}", "backbone.blocks.{n}.norm1.{w}"),
    ("transformer.resblocks.{n}.ln_2.{w}", "backbone.blocks.{n}.norm2.{w}"),
    ("transformer.resblocks.{n}.ls_1.gamma", "backbone.blocks.{n}.ls1.gamma"),
    ("transformer.resblocks.{n}.ls_2.gamma", "backbone.blocks.{n}.ls2.gamma"),
    ("transformer.resblocks.{n}.attn.in_proj_{w}", "backbone.blocks.{n}.attn.qkv.{w}"),
    ("transformer.resblocks.{n}.attn.out_proj.{w}", "backbone.blocks.{n}.attn.proj.{w}"),
    ("transformer.resblocks.{n}.mlp.c_fc.{w}", "backbone.blocks.{n}.mlp.fc1.{w}"),
    ("transformer.resblocks.{n}.mlp.c_proj.{w}", "backbone.blocks.{n}.mlp.fc2.{w}"),
    ("proj", "projection.weight"),
)
# Our name where the norm follows the pooling: `final_ln_after_pool` of open_clip.
_NORM_AFTER_POOLING = ("backbone.norm.", "backbone.fc_norm.")
_RESNET = Names(
    *((f"conv{k}.weight", f"backbone.stem.conv{k}.conv.weight") for k in (1, 2, 3)),
    *((f"bn{k}.{{w}}", f"backbone.stem.conv{k}.bn.{{w}}") for k in (1, 2, 3)),
    *(
        (f"layer{stage + 1}.{{n}}.{theirs}", f"backbone.stages.{stage}.{{n}}.{ours}")
        for stage in range(4)
        for theirs, ours in (
            ("conv1.weight", "conv1_1x1.conv.weight"),
            ("conv2.weight", "conv2_kxk.conv.weight"),
            ("conv3.weight", "conv3_1x1.conv.weight"),
            ("bn1.{w}", "conv1_1x1.bn.{w}"),
            ("bn2.{w}", "conv2_kxk.bn.{w}"),
            ("bn3.{w}", "conv3_1x1.bn.{w}"),
            ("downsample.0.weight", "shortcut.conv.conv.weight"),
            ("downsample.1.{w}", "shortcut.conv.bn.{w}"),
        )
    ),
    ("attnpool.positional_embedding", "backbone.head.pos_embed"),
    *((f"attnpool.{part}_proj.{{w}}", f"backbone.head.{part}.{{w}}") for part in "qkv"),
    ("attnpool.c_proj.{w}", "backbone.head.proj.{w}"),
    ("proj", "projection.weight"),
)
_TIMM = Names(
    ("trunk.{rest}", "backbone.{rest}"),
    ("head.proj.{w}", "projection.{w}"),
    ("head.mlp.fc1.{w}", "projection.0.{w}"),
    ("head.mlp.fc2.{w}", "projection.2.{w}"),
)
_HUGGING_FACE = Names(("transformer.{rest}", "encoder.{rest}"), ("proj.{rest}", "projection.{rest}"))
_TEXT_AT_THE_TOP = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")
# Buffers that files of older versions hold, and what OpenAI's archives have beside the weights.
_IGNORED = ("attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size")


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of open_clip or of OpenAI's CLIP in ours. Raises KeyError for a name that neither layout has."""
    state = {name: value for name, value in state.items() if name.split(".")[-1] not in _IGNORED}
    text = below(state, "text.")
    if not text:
        text = {name: value for name, value in state.items() if name.startswith(_TEXT_AT_THE_TOP)}
    scalars = {name: value for name, value in state.items() if name in ("logit_scale", "logit_bias")}
    heads = ("visual.", "text.", "logit_", *_TEXT_AT_THE_TOP)
    if unknown := [name for name in state if not name.startswith(heads)]:
        raise KeyError(unknown[0])
    ours = under("vision.", convert_vision(below(state, "visual."))) | under("text.", convert_text(text))
    return ours | scalars_to_ours(scalars)


def convert_text(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text tower in ours: open_clip's own transformer, or an encoder of Hugging Face."""
    if any(name.startswith("proj.") for name in state) or "token_embedding.weight" not in state:
        return {_HUGGING_FACE.to_ours(name): value for name, value in state.items()}
    linear, ours = Names(_LINEAR_TEXT), {}
    for name, value in state.items():
        table = linear if name.startswith("text_projection.") else _TEXT
        ours[table.to_ours(name)] = value.T if name == "text_projection" else value
    return split(ours, _WHOLE, _QKV, (1, 1, 1))


def convert_vision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An image tower in ours: open_clip's own vision transformer or ResNet, or a tower of timm."""
    if any(name.startswith("trunk.") for name in state):
        return {_TIMM.to_ours(name): value for name, value in state.items()}
    table = _VIT if "class_embedding" in state else _RESNET
    ours = {table.to_ours(name): value for name, value in state.items()}
    return {name: _LEADING.get(name, lambda value: value)(value) for name, value in ours.items()}


def export(
    state: Mapping[str, Tensor], *, native_vision: bool, native_text: bool, custom_text: bool
) -> dict[str, Tensor]:
    """A state dict of ours in open_clip's layout.

    Args:
        native_vision: open_clip's own vision transformer or ResNet; otherwise a tower of timm.
        native_text: open_clip's own transformer; otherwise an encoder of Hugging Face.
        custom_text: the layout of `CustomTextCLIP`.

    Raises: KeyError: the tower has a tensor that the layout lacks.
    """
    vision, text = below(state, "vision."), below(state, "text.")
    theirs = under("visual.", export_vision(vision, native=native_vision))
    theirs |= under("text." if custom_text else "", export_text(text, native=native_text))
    theirs["logit_scale"] = state["log_logit_scale"].reshape(())
    if "logit_bias" in state:
        theirs["logit_bias"] = state["logit_bias"].reshape(())
    return theirs


def export_text(state: Mapping[str, Tensor], *, native: bool) -> dict[str, Tensor]:
    """A text tower of ours in open_clip's layout."""
    if not native:
        return {_HUGGING_FACE.to_theirs(name): value for name, value in state.items()}
    is_linear = "projection.bias" in state
    linear, theirs = Names(_LINEAR_TEXT), {}
    for name, value in join(state, _WHOLE, _QKV).items():
        table = linear if is_linear and name.startswith("projection.") else _TEXT
        theirs[table.to_theirs(name)] = value.T if name == "projection.weight" and not is_linear else value
    return theirs


def export_vision(state: Mapping[str, Tensor], *, native: bool) -> dict[str, Tensor]:
    """An image tower of ours in open_clip's layout."""
    if not native:
        return {_TIMM.to_theirs(name): value for name, value in state.items()}
    old, new = _NORM_AFTER_POOLING
    state = {name.replace(new, old): value for name, value in state.items()}
    table = _VIT if "backbone.cls_token" in state else _RESNET
    back = {"backbone.cls_token": (0, 0), "backbone.pos_embed": (0,)}
    return {
        table.to_theirs(name): value.T if name == "projection.weight" else value[back.get(name, ())]
        for name, value in state.items()
    }


def norm_after_pooling(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same converted tensors for a tower that normalises after pooling, under timm's name of that layer."""
    old, new = _NORM_AFTER_POOLING
    return {name.replace(old, new): value for name, value in state.items()}


def scalars_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`logit_scale`, `logit_bias` of any shape with one element as ours, float32 [1]."""
    names = {"logit_scale": "log_logit_scale", "logit_bias": "logit_bias"}
    return {ours: state[theirs].reshape(1).to(torch.float32) for theirs, ours in names.items() if theirs in state}


_LEADING = {
    "backbone.cls_token": lambda value: value[None, None],
    "backbone.pos_embed": lambda value: value[None],
    "projection.weight": lambda value: value.T,
}
