"""Logits are computed in float32 whatever the towers' precision is (bf16 logits cost 1 % of the gradient)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clip_lightning.compat import no_autocast
from clip_lightning.errors import UserError


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Inside, matrix products of float32 are products of float32: no autocast, no TF32, no bf16 passes."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        with no_autocast(device):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def working_dtype(image: Tensor, text: Tensor) -> torch.dtype:
    """float32 for features [b, D] of float32 or less, float64 for float64 (gradcheck).

    Raises: UserError for a rank without pairs, and for images and texts that do not fit each other.
    """
    if not len(image) or image.shape != text.shape:
        raise UserError(
            f"image features {list(image.shape)} and text features {list(text.shape)} must be pairs [b, D], b above "
            "0; give every rank as many images as texts, and both towers the same width"
        )
    if image.dtype != text.dtype:
        raise UserError(
            f"image features are {image.dtype} and text features {text.dtype}; let both towers give the same"
        )
    return torch.promote_types(torch.float32, image.dtype)
