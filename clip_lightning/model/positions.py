"""Position embeddings of a timm backbone for smaller images, by a fixed matrix product.

torch's bicubic interpolation has no deterministic backward pass on a GPU; a matrix product with the same weights has.
Shapes: P positions of the backbone's own grid, Q of the smaller one, D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from clip_lightning.compat import no_autocast


def resize_matrix(old: int, new: int) -> Tensor:
    """Float32 [Q, P], equal to timm's antialiased bicubic resize of an `old` x `old` grid to `new` x `new`."""
    identity = torch.eye(old)[None, None]
    side = functional.interpolate(identity, (new, old), mode="bicubic", antialias=True)[0, 0]
    return torch.kron(side, side)


def square_grid(backbone: Any, image_size: int) -> int | None:
    """Patches along a side of a square image, where the backbone resizes a table of positions; None otherwise."""
    if not getattr(backbone, "dynamic_img_size", False) or getattr(backbone, "pos_embed", None) is None:
        return None
    rows, columns = backbone.patch_embed.dynamic_feat_size((image_size, image_size))
    return rows if rows == columns else None


def call_resized(backbone: Any, matrix: Tensor, images: Tensor) -> Tensor:
    """The backbone's features of smaller images.

    Args:
        matrix: float32 [Q, P], of `resize_matrix`.
        images: [B, 3, S, S].
    """
    table = backbone.pos_embed  # [1, prefix + P, D]
    num_prefix = table.shape[1] - matrix.shape[1]
    with no_autocast(images.device):
        resized = (matrix @ table[0, num_prefix:].float()).to(table.dtype)
    positions = torch.cat([table[:, :num_prefix], resized[None]], dim=1)
    grid = backbone.patch_embed.grid_size
    side = round(len(matrix) ** 0.5)
    backbone.patch_embed.grid_size = (side, side)  # the table fits: timm has nothing left to resize
    try:
        features: Tensor = functional_call(backbone, {"pos_embed": positions}, (images,))
        return features
    finally:
        backbone.patch_embed.grid_size = grid
