"""The gradient of a whole batch, a micro-batch at a time: exact for a loss that couples all pairs.

Features are computed first, without a graph; then one loss over all of them; then each micro-batch again with a graph,
which propagates the loss's gradient from the features into the towers (GradCache, arXiv 2101.06983). The towers repeat
their random draws of the first pass. Memory is that of one micro-batch and of all features; the price is one more
forward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from clip_lightning.loss import LossOutput
from clip_lightning.model.clip import Features


def cached_gradients(
    encode: Callable[[Any], Features],
    loss: Callable[..., LossOutput],
    pieces: Sequence[Any],
    *,
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager[None]],
    device: torch.device,
) -> LossOutput:
    """Adds the gradients of `loss` over all pieces to the parameters behind `encode`.

    Args:
        encode: features of one piece; called twice for each.
        loss: called with features, scale and bias of all pieces of this rank together.
        backward: backpropagates a scalar.
        no_sync: gradients computed inside are not reduced; the last piece runs outside and reduces their sum.
        device: whose random state is kept and restored, beside the CPU's.
    """
    states, cached = [], []
    with torch.no_grad():
        for piece in pieces:
            states.append(_random_state(device))
            cached.append(encode(piece))
    first = cached[0]
    leaves = [torch.cat([features.image for features in cached]), torch.cat([features.text for features in cached])]
    leaves += [value.detach() for value in (first.logit_scale, first.logit_bias) if value is not None]
    inputs = [leaf.requires_grad_() for leaf in leaves]
    output = loss(*inputs, *[None] * (len(first) - len(inputs)))  # a scale without a bias
    image, text, *scalars = torch.autograd.grad(output.loss, leaves, materialize_grads=True)
    sizes = [len(features.image) for features in cached]
    for k, (piece, *gradients) in enumerate(zip(pieces, image.split(sizes), text.split(sizes), strict=True)):
        is_last = k == len(pieces) - 1
        if is_last:  # scale and bias belong to no piece: their gradient is added once
            gradients += scalars
        with nullcontext() if is_last else no_sync(), _restored(states[k], device):
            carried = zip(encode(piece), gradients, strict=False)
            backward(torch.stack([(value * gradient).sum() for value, gradient in carried]).sum())
    return LossOutput(output.loss.detach(), output.accuracy)


def split(batch: Sequence[Tensor], micro_batch: int) -> list[tuple[Tensor, ...]]:
    """Cuts tensors [b, ...] into pieces of `micro_batch` samples; the last may be smaller."""
    return list(zip(*(tensor.split(micro_batch) for tensor in batch), strict=True))


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _restored(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Inside, the random state is `state`; afterwards it is what it was before."""
    before = _random_state(device)
    _set_random_state(state, device)
    try:
        yield
    finally:
        _set_random_state(before, device)


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
