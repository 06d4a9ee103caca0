"""Weights of OpenAI's CLIP, in the layout that open_clip keeps them in, as weights of ours."""

import re

from torch import Tensor

_TEXT_NAMES = [
    (r"token_embedding\.weight", "embeddings.token_embedding.weight"),
    (r"positional_embedding", "embeddings.position_embedding.weight"),
    (r"ln_final\.(\w+)", r"final_layer_norm.\1"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(\w+)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(\w+)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)", r"encoder.layers.\1.mlp.fc1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)", r"encoder.layers.\1.mlp.fc2.\2"),
]
_VIT_NAMES = [
    (r"class_embedding", "cls_token"),
    (r"positional_embedding", "pos_embed"),
    (r"conv1\.weight", "patch_embed.proj.weight"),
    (r"ln_pre\.(\w+)", r"norm_pre.\1"),
    (r"ln_post\.(\w+)", r"norm.\1"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
]
_RESNET_NAMES = [
    (r"conv([123])\.weight", r"stem.conv\1.conv.weight"),
    (r"bn([123])\.(\w+)", r"stem.conv\1.bn.\2"),
    (r"layer(\d)\.(\d+)\.conv([13])\.weight", r"stages.\1.\2.conv\3_1x1.conv.weight"),
    (r"layer(\d)\.(\d+)\.conv2\.weight", r"stages.\1.\2.conv2_kxk.conv.weight"),
    (r"layer(\d)\.(\d+)\.bn([13])\.(\w+)", r"stages.\1.\2.conv\3_1x1.bn.\4"),
    (r"layer(\d)\.(\d+)\.bn2\.(\w+)", r"stages.\1.\2.conv2_kxk.bn.\3"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.weight", r"stages.\1.\2.shortcut.conv.conv.weight"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", r"stages.\1.\2.shortcut.conv.bn.\3"),
    (r"attnpool\.positional_embedding", "head.pos_embed"),
    (r"attnpool\.([qkv])_proj\.(\w+)", r"head.\1.\2"),
    (r"attnpool\.c_proj\.(\w+)", r"head.proj.\1"),
]


def convert_text(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text tower of OpenAI's layout in ours; attention in three parts."""
    ours = {}
    for name, value in state.items():
        if name.startswith("text_projection"):
            kind = name.partition(".")[2]
            ours[f"projection.{kind or 'weight'}"] = value if kind else value.T
        elif found := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(\w+)", name):
            for part, values in zip("qkv", value.chunk(3), strict=True):
                ours[f"encoder.encoder.layers.{found[1]}.self_attn.{part}_proj.{found[2]}"] = values
        else:
            ours[f"encoder.{_renamed(name, _TEXT_NAMES)}"] = value
    return ours


def convert_vision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A vision transformer or ResNet of OpenAI's layout in ours."""
    rules = _VIT_NAMES if "class_embedding" in state else _RESNET_NAMES
    ours = {}
    for name, value in state.items():
        if name == "proj":
            ours["projection.weight"] = value.T
            continue
        new = _renamed(name, rules)
        if found := re.fullmatch(r"stages\.(\d)\.(.*)", new):  # counted from 0 here
            new = f"stages.{int(found[1]) - 1}.{found[2]}"
        leading = {"cls_token": (None, None), "pos_embed": (None,)}.get(new, ())
        ours[f"backbone.{new}"] = value[leading] if leading else value
    return ours


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of OpenAI's CLIP, as open_clip keeps it, in ours."""
    vision = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    text = {name: value for name, value in state.items() if not name.startswith(("visual.", "logit_"))}
    ours = {f"vision.{name}": value for name, value in convert_vision(vision).items()}
    ours |= {f"text.{name}": value for name, value in convert_text(text).items()}
    return ours | {"log_logit_scale": state["logit_scale"].reshape(1)}


def _renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise KeyError(name)
