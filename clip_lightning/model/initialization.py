"""How OpenAI's towers begin, tensor by tensor; neither timm's nor transformers' defaults are theirs.

Source: `initialize_parameters` of openai/CLIP (clip/model.py) and, where that is silent (all of the vision
transformer, all biases of the text tower), what PyTorch gives to `nn.Linear`, `nn.Conv2d` and `nn.MultiheadAttention`.
Every function fills the parameters in place and draws from torch's default generator.
"""

from collections.abc import Callable

from torch import Tensor, nn


def vision_transformer(backbone: nn.Module) -> None:
    """A timm VisionTransformer with a class token and a norm before its blocks."""
    weights = dict(backbone.named_parameters())
    width = weights["pos_embed"].shape[-1]
    for name, parameter in weights.items():
        if name in ("cls_token", "pos_embed"):
            nn.init.normal_(parameter, std=width**-0.5)
        elif name.endswith("attn.qkv.weight"):
            nn.init.xavier_uniform_(parameter)
        elif name.endswith(("attn.qkv.bias", "attn.proj.bias")):
            nn.init.zeros_(parameter)
        elif "norm" in name:
            _gain_or_shift(name, parameter)
        else:
            _torch_default(name, weights)


def resnet(backbone: nn.Module) -> None:
    """A timm CLIP ResNet: `stem`, `stages`, and attention pooling with separate q, k and v as `head`."""
    weights = dict(backbone.named_parameters())
    pooling_std = weights["head.q.weight"].shape[1] ** -0.5
    for name, parameter in weights.items():
        if name == "head.pos_embed" or (name.startswith("head.") and name.endswith(".weight")):
            nn.init.normal_(parameter, std=pooling_std)
        elif name.endswith("conv3_1x1.bn.weight"):
            nn.init.zeros_(parameter)
        elif ".bn." in name:
            _gain_or_shift(name, parameter)
        else:
            _torch_default(name, weights)


def text_transformer(encoder: nn.Module, num_layers: int) -> None:
    """A transformers CLIPTextModel or SiglipTextModel."""
    weights = dict(encoder.named_parameters())
    width = weights["embeddings.token_embedding.weight"].shape[-1]
    residual_std = width**-0.5 * (2 * num_layers) ** -0.5
    std_by_suffix = {
        "token_embedding.weight": 0.02,
        "position_embedding.weight": 0.01,
        "q_proj.weight": width**-0.5,
        "k_proj.weight": width**-0.5,
        "v_proj.weight": width**-0.5,
        "out_proj.weight": residual_std,
        "fc1.weight": (2 * width) ** -0.5,
        "fc2.weight": residual_std,
    }
    for name, parameter in weights.items():
        std = next((std for suffix, std in std_by_suffix.items() if name.endswith(suffix)), None)
        if std is not None:
            nn.init.normal_(parameter, std=std)
        elif name.endswith("_proj.bias"):
            nn.init.zeros_(parameter)
        elif "norm" in name:
            _gain_or_shift(name, parameter)
        else:
            _torch_default(name, weights)


VISION: dict[str, Callable[[nn.Module], None]] = {"openai_vit": vision_transformer, "openai_resnet": resnet}


def _gain_or_shift(name: str, parameter: Tensor) -> None:
    nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)


def _torch_default(name: str, weights: dict[str, nn.Parameter]) -> None:
    """Weight and bias of nn.Linear and nn.Conv2d: uniform up to 1 / sqrt(inputs of one output)."""
    layer, _, kind = name.rpartition(".")
    assert kind in ("weight", "bias"), f"no rule for {name}"
    bound = weights[f"{layer}.weight"][0].numel() ** -0.5
    nn.init.uniform_(weights[name], -bound, bound)
