"""Activations that are dropped in the forward pass and computed again in the backward pass, block by block."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from clip_lightning import compat
from clip_lightning.errors import UserError
from clip_lightning.model.clip import CLIP

_aten = torch.ops.aten
_products = (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.linear, _aten.convolution)
# What costs most to compute again: matrix products and attention. Norms, activations and sums are cheap.
EXPENSIVE = {product.default for product in _products} | compat.attention_operators()


def apply(model: CLIP, kind: str) -> None:
    """Wraps the forward pass of every block; names in the state dict do not change.

    Args:
        kind: none; full, a block keeps only its input; selective, it also keeps the results of `EXPENSIVE`.
    Raises: UserError for another kind.
    """
    if kind == "none":
        return
    if kind not in ("full", "selective"):
        raise UserError(f"cluster.activation_checkpointing={kind} is not known: write none, full or selective")
    settings: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in model.blocks():
        block.forward = _checkpointed(block.forward, settings)


def _checkpointed(forward: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    # A function of our own, which torch.compile can compile: called directly, `checkpoint` would run eagerly.
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **settings, **kwargs)

    return run


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE
