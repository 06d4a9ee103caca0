"""Logits are computed in float32 whatever the towers' precision is (bf16 logits cost 1 % of the gradient)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Inside, matrix products of float32 are products of float32: no autocast, no TF32, no bf16 passes."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def working_dtype(*features: Tensor) -> torch.dtype:
    """float32 for features of float32 or less, float64 for float64 (gradcheck)."""
    dtype = torch.float32
    for tensor in features:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
