"""The architecture of an OpenAI archive, or of a bare state dict in OpenAI's layout, from the shapes of its tensors."""

import re
from collections.abc import Mapping, Sequence

from clip_lightning.config.foreign import towers
from clip_lightning.config.schema import ModelConfig
from clip_lightning.errors import UserError

Shapes = Mapping[str, Sequence[int]]


def read(shapes: Shapes, activation: str | None) -> ModelConfig:
    """Our configuration of a model in OpenAI's layout.

    Args:
        shapes: by name.
        activation: quick_gelu or gelu; None: it is not known, since weights are the same with either.

    Raises:
        UserError: the activation is not known, or the shapes are those of another model.
    """
    if activation is None:
        raise UserError(
            "a bare state dict does not say whether it was trained with QuickGELU (OpenAI's weights) or GELU "
            "(LAION's); choose a named model (vit_b32 has QuickGELU), or put open_clip_config.json beside the file"
        )
    try:
        embed_dim = shapes["text_projection"][1]
        vocab, width = shapes["token_embedding.weight"]
        context = shapes["positional_embedding"][0]
        text = towers.text_transformer(
            kind="clip_text_model",
            vocab=vocab,
            context=context,
            width=width,
            layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
            heads=width // 64,
            intermediate=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
            activation=activation,
        )
        if "visual.class_embedding" in shapes:
            width, _, patch, _ = shapes["visual.conv1.weight"]
            grid = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
            vision = towers.clip_vit(
                width=width,
                layers=_count(shapes, r"visual\.transformer\.resblocks\.(\d+)\."),
                heads=width // 64,
                patch=patch,
                pixels=grid * patch,
                mlp_ratio=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0] / width,
                activation=activation,
            )
        else:
            layers = tuple(_count(shapes, rf"visual\.layer{k}\.(\d+)\.") for k in (1, 2, 3, 4))
            grid = round((shapes["visual.attnpool.positional_embedding"][0] - 1) ** 0.5)
            found = towers.resnet(layers, embed_dim, grid * 32)
            if found is None:
                raise UserError(f"its ResNet has {layers} blocks, and timm has no ResNet of CLIP with these stages")
            vision = found
    except KeyError as error:
        raise UserError(f"it has OpenAI's layout but lacks {error.args[0]}") from error
    return ModelConfig(name="auto", embed_dim=embed_dim, vision=vision, text=text)


def _count(shapes: Shapes, pattern: str) -> int:
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})
