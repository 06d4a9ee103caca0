"""Inference that leaves a model unchanged: evaluation mode, no gradients, and every random state restored.

The towers may run in low precision; features come out in float32, and logits are float32 always.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from clip_lightning.data.batches import Batch
from clip_lightning.errors import AgreedError
from clip_lightning.loss.precision import full_float32
from clip_lightning.model.clip import CLIP

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def inference(model: nn.Module, device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Puts the model in evaluation mode under autocast; afterwards its modes and all random states are as before.

    `torch.no_grad` and not `torch.inference_mode`: encoders keep lazily built tensors (positions, masks), and one
    built in inference mode would make the next training step raise.
    """
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    low_precision = AUTOCAST[precision]
    autocast = torch.autocast(device.type, low_precision, enabled=precision != "fp32")
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), autocast:
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])


def pair_features(
    model: CLIP, pairs: Batch, device: torch.device, *, batch: int, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Unit features [N, D] of the images and of the texts of the pairs that can be read, float32.

    To be called on every rank, since the blocks of a sharded model are gathered.

    Args: batch: pairs in a forward pass.
    """
    readable = pairs.positions >= 0
    columns = (pairs.images[readable], pairs.tokens[readable], pairs.lengths[readable])
    images, texts = [], []
    with inference(model, device, precision):
        for pixels, tokens, lengths in zip(*(column.split(batch) for column in columns), strict=True):
            images.append(model.encode_image(pixels.to(device)))
            texts.append(model.encode_text(tokens.to(device), lengths.to(device)))
    return torch.cat(images), torch.cat(texts)


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """Products [n, m] of unit features [n, D] and [m, D], float32."""
    with full_float32(rows.device):
        return rows.float() @ columns.float().T


def best_allowed(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits [B, C] of labels from those [B, A] of a wider classifier: the largest among the classes of each label.

    As Taori et al. (2020) measure an ImageNet classifier on sets with other labels (Radford et al. 2021, section 3.3).
    A label without a class has -inf.

    Args: allowed: bool [A, C], which of the wider classifier's classes count as a label.
    """
    source, target = allowed.nonzero(as_tuple=True)
    found = logits.new_full((len(logits), allowed.shape[1]), -torch.inf)
    return found.scatter_reduce_(1, target.expand(len(logits), -1), logits[:, source], "amax")


def refuse_broken(num_broken: int, num_total: int, where: str) -> None:
    """Raises AgreedError when features are NaN or infinite: nothing can be ranked by them.

    Args: num_broken: of all ranks, so that every rank raises.
    """
    if num_broken:
        raise AgreedError(
            f"{where}: {num_broken} of {num_total} features are NaN or infinite, so nothing can be measured; "
            "training has diverged (lower compute.learning_rate, or evaluate an earlier checkpoint)."
        )
