"""CLIP: two towers and a scale (paper, Figure 3), for any kind of towers.

Shapes: B images or texts, S pixels, L tokens, D width of the shared space.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from clip_lightning.config.phases import Phase
from clip_lightning.config.schema import LossConfig, ModelConfig
from clip_lightning.model.imported import load_pretrained
from clip_lightning.model.text import TextTower
from clip_lightning.model.vision import VisionTower


class Features(NamedTuple):
    """What the loss reads: `image`, `text` float32 [B, D] of length 1, `logit_scale` [1], `logit_bias` [1] or None."""

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None


class CLIP(nn.Module):
    """An image tower and a text tower with a learned scale, and for the sigmoid loss a learned bias.

    Args:
        vision: maps images to [B, D].
        text: maps tokens [B, L] and their lengths [B] to [B, D].
        loss: initial values of scale and bias, and the largest scale.
    """

    def __init__(self, vision: nn.Module, text: nn.Module, loss: LossConfig) -> None:
        super().__init__()
        self.vision = vision
        self.text = text
        # Of shape [1]: FSDP2 shards no scalars.
        self.log_logit_scale = nn.Parameter(torch.full((1,), loss.logit_scale_init))
        bias = loss.logit_bias_init
        self.logit_bias = nn.Parameter(torch.full((1,), bias)) if bias is not None else None
        self._largest_log_scale = loss.logit_scale_max

    def forward(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> Features:
        """Features of pairs.

        Args:
            images: uint8 [B, 3, S, S], or floats that are normalised already.
            tokens: int64 [B, L].
            lengths: int64 [B], tokens that are not padding.
        """
        return Features(
            image=self.encode_image(images),
            text=self.encode_text(tokens, lengths),
            logit_scale=self.log_logit_scale.float().exp(),
            logit_bias=self.logit_bias.float() if self.logit_bias is not None else None,
        )

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Float32 [B, D] of images as in `forward`."""
        features = self.vision(images).float()
        return functional.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, lengths: Tensor, normalize: bool = True) -> Tensor:
        """Float32 [B, D] of texts as in `forward`."""
        features = self.text(tokens, lengths).float()
        return functional.normalize(features, dim=-1) if normalize else features

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Limits the scale to its maximum, 100 in the paper (section 2.5); called after every optimizer step."""
        if self._largest_log_scale is not None:
            self.log_logit_scale.clamp_(max=self._largest_log_scale)

    @torch.no_grad()
    def current_logit_scale(self) -> Tensor:
        """The factor of the cosines, float32 [1]; call it on every rank, since shards are gathered."""
        scale = self.log_logit_scale.detach()
        return (scale.full_tensor() if isinstance(scale, DTensor) else scale).float().exp()

    @torch.no_grad()
    def current_logit_bias(self) -> Tensor | None:
        """What is added to the logits, float32 []; None without a bias. Call it on every rank."""
        if self.logit_bias is None:
            return None
        bias = self.logit_bias.detach()
        return (bias.full_tensor() if isinstance(bias, DTensor) else bias).float().reshape(())

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks of both towers, in order: what is checkpointed, compiled and sharded one by one."""
        return [*_blocks(self.vision), *_blocks(self.text)]


def build_clip(model: ModelConfig, loss: LossConfig, phases: Sequence[Phase] = ()) -> CLIP:
    """An initialised model, on the device that is torch's default (`with torch.device("meta")` costs no memory).

    Args:
        phases: of the run that trains it; not needed otherwise; see `VisionTower`.

    Raises:
        UserError: a tower cannot be built, or its weights cannot be loaded.
    """
    clip = CLIP(VisionTower(model.vision, model.embed_dim, phases), TextTower(model.text, model.embed_dim), loss)
    if model.pretrained is not None:
        load_pretrained(clip, model.pretrained, model.allow_missing, model.vision.image_size)
    return clip


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The items of the innermost lists of equal modules that have children."""
    children = list(module.children())
    is_list = isinstance(module, nn.ModuleList | nn.Sequential) and len({type(child) for child in children}) == 1
    for child in children:
        inner = list(_blocks(child))
        is_block = is_list and not isinstance(child, nn.ModuleList | nn.Sequential) and any(child.children())
        yield from inner or ([child] if is_block else [])
