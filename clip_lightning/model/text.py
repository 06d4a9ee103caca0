"""The text tower: any Hugging Face encoder, or the user's own, pooled as the config says and projected.

Masks and pooled positions come from lengths, never from the ids of tokens, whose meaning belongs to the tokenizer.
Shapes: B texts, L tokens, W width of the encoder, D width of the shared space.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from clip_lightning.config.schema import TextConfig
from clip_lightning.errors import UserError
from clip_lightning.model import encoder as encoders
from clip_lightning.targets import resolve_target


class TextTower(nn.Module):
    """Tokens to a feature of the shared space, not yet normalised.

    Args:
        config: encoder, pooling, projection.
        embed_dim: width D of the shared space.

    Raises:
        UserError: unknown encoder or weights, no connection to the hub, a vocabulary or a context that does not fit.
    """

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        if config.pool == "last" and not config.pad_to_context:
            raise UserError(
                "model.text.pool=last reads the last position of the context, which only padded texts have; "
                "write model.text.pad_to_context=true, or model.text.pool=eot for the end of the text"
            )
        self.pool, self.mask_padding, self.locked = config.pool, config.mask_padding, config.locked
        self.is_own = config._target_ is not None
        if self.is_own:
            self.encoder = resolve_target(str(config._target_), "model.text._target_")(**config.config)
        else:
            self.encoder = encoders.build(config)
        self.position_offset = None if self.is_own else encoders.position_offset(self.encoder)
        self.width = _width(self.encoder, config)
        self.projection = _build_projection(config, self.width, embed_dim)
        if config.locked:
            self.encoder.requires_grad_(False).eval()

    def forward(self, tokens_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Features.

        Args:
            tokens_BL: int64.
            lengths_B: int64, how many tokens are not padding.

        Returns:
            Float [B, D].
        """
        return self.projection(self.pooled(tokens_BL, lengths_B))

    def pooled(self, tokens_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """What the projection reads, [B, W]; of a locked tower without a graph."""
        with torch.no_grad() if self.locked else nullcontext():
            if self.is_own:
                return self.encoder(tokens_BL, lengths_B)
            return self._pool(self._encode(tokens_BL, lengths_B), lengths_B)

    def train(self, mode: bool = True) -> "TextTower":
        """As usual, but a locked encoder draws nothing at random."""
        super().train(mode)
        if self.locked:
            self.encoder.eval()
        return self

    def _encode(self, tokens_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """The encoder's last hidden state, [B, L, W]."""
        arguments: dict[str, Tensor] = {}
        positions_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        if self.mask_padding:
            arguments["attention_mask"] = (positions_L < lengths_B[:, None]).long()
        if self.position_offset is not None:
            arguments["position_ids"] = (positions_L + self.position_offset).expand_as(tokens_BL)
        return self.encoder(input_ids=tokens_BL, **arguments).last_hidden_state

    def _pool(self, hidden_BLW: Tensor, lengths_B: Tensor) -> Tensor:
        """One vector for each text, [B, W]."""
        if self.pool == "cls":
            return hidden_BLW[:, 0]
        if self.pool == "pooler":
            pooled: Tensor = self.encoder.pooler(hidden_BLW)
            return pooled
        if self.pool == "last":
            return hidden_BLW[:, -1]
        if self.pool == "eot":
            return hidden_BLW[torch.arange(hidden_BLW.shape[0], device=hidden_BLW.device), lengths_B - 1]
        inside_BL = torch.arange(hidden_BLW.shape[1], device=hidden_BLW.device) < lengths_B[:, None]
        return (hidden_BLW * inside_BL[..., None]).sum(1) / lengths_B[:, None]


def _width(encoder: nn.Module, config: TextConfig) -> int:
    """Numbers that the encoder gives for a text."""
    own = getattr(encoder, "num_features", None)
    width = own if config._target_ is not None else encoder.config.hidden_size  # type: ignore[union-attr]
    if not isinstance(width, int):
        raise UserError(f"model.text._target_={config._target_} gives a module without `num_features`, its width")
    return width


def _build_projection(config: TextConfig, width: int, embed_dim: int) -> nn.Module:
    """From the encoder's width to the shared space; weights begin as in OpenAI's CLIP, biases at 0."""
    if config.projection == "none":
        if width != embed_dim:
            raise UserError(
                f"model.text.projection=none: the encoder gives {width} numbers and model.embed_dim={embed_dim}; "
                "write model.text.projection=linear"
            )
        return nn.Identity()
    hidden = (width + embed_dim) // 2
    widths = [(width, embed_dim)] if config.projection == "linear" else [(width, hidden), (hidden, embed_dim)]
    layers = [nn.Linear(*pair, bias=config.projection_bias) for pair in widths]
    for layer in layers:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layers[0] if len(layers) == 1 else nn.Sequential(layers[0], nn.GELU(), layers[1])
