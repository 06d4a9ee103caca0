"""What a built tower is, read from its layers: whether another library has the same tower, and by which sizes."""

from dataclasses import dataclass
from typing import Any

from timm.layers import GELUTanh, QuickGELU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from clip_lightning.errors import UserError
from clip_lightning.model.clip import CLIP

_ACTIVATIONS: dict[type, str] = {nn.GELU: "gelu", QuickGELU: "quick_gelu", GELUTanh: "gelu_pytorch_tanh"}


@dataclass(frozen=True)
class VitShape:
    """A plain vision transformer of timm.

    Attributes:
        patch, pixels: sides.
        activation: transformers' name of it.
        eps: of every layer norm.
        pool: token, avg or map.
        has_class_token, has_norm_pre, has_patch_bias, has_layer_scale: of its layers.
    """

    width: int
    layers: int
    heads: int
    intermediate: int
    patch: int
    pixels: int
    activation: str
    eps: float
    pool: str
    has_class_token: bool
    has_norm_pre: bool
    has_patch_bias: bool
    has_layer_scale: bool

    @property
    def is_clips(self) -> bool:
        """Whether it is the paper's: class token, norm before the blocks, patches without a bias."""
        return (
            self.pool == "token"
            and self.has_class_token
            and self.has_norm_pre
            and not self.has_patch_bias
            and self.eps == 1e-5
        )

    @property
    def is_siglips(self) -> bool:
        """Whether it is SigLIP's: pooled by attention, without a class token."""
        return self.pool == "map" and not self.has_class_token and not self.has_norm_pre and self.eps == 1e-6


def vit_shape(backbone: Any, pixels: int) -> VitShape | None:
    """The sizes of a vision transformer of timm; None of any other tower, or one with further layers."""
    if type(backbone) is not VisionTransformer or any(type(block) is not Block for block in backbone.blocks):
        return None
    block, norms = backbone.blocks[0], {m.eps for m in backbone.modules() if isinstance(m, nn.LayerNorm)}
    activation = _ACTIVATIONS.get(type(block.mlp.act))
    # Registers, positions without the class token, norms of queries and keys, a classifier: no other library has them.
    plain = (
        getattr(backbone, "num_reg_tokens", 0) == 0
        and not backbone.no_embed_class
        and isinstance(block.attn.q_norm, nn.Identity)
        and isinstance(backbone.head, nn.Identity)
        and backbone.num_prefix_tokens in (0, 1)
    )
    if activation is None or len(norms) != 1 or not plain:
        return None
    return VitShape(
        width=backbone.embed_dim,
        layers=len(backbone.blocks),
        heads=block.attn.num_heads,
        intermediate=block.mlp.fc1.out_features,
        patch=backbone.patch_embed.patch_size[0],
        pixels=pixels,
        activation=activation,
        eps=norms.pop(),
        pool=backbone.global_pool,
        has_class_token=backbone.cls_token is not None,
        has_norm_pre=not isinstance(backbone.norm_pre, nn.Identity),
        has_patch_bias=backbone.patch_embed.proj.bias is not None,
        has_layer_scale=not isinstance(block.ls1, nn.Identity),
    )


def text_kind(model: CLIP) -> str:
    """transformers' `model_type` of the text encoder. Raises UserError for a user's own tower."""
    config = getattr(model.text.encoder, "config", None)
    if config is None:
        raise UserError("the text tower is the user's own (model.text._target_), which no other library can load")
    return str(config.model_type)


def heads(model: CLIP) -> tuple[str, str]:
    """The kind of projection of the image tower and of the text tower: none, linear, bias (linear with one), mlp."""
    return _head(model.vision.projection), _head(model.text.projection)  # type: ignore[arg-type]


def _head(projection: nn.Module) -> str:
    if isinstance(projection, nn.Identity):
        return "none"
    if isinstance(projection, nn.Linear):
        return "linear" if projection.bias is None else "bias"
    return "mlp"
