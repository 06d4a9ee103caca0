"""A hash of a model's weights: the same for whole weights and for shards, and on every device."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def weights_hash(modules: Iterable[nn.Module]) -> str:
    """16 hexadecimal digits of the SHA-256 of all parameters and persistent buffers, in the order of the state dicts.

    Names do not enter: compiling and wrapping rename weights. To be called on every rank: shards are gathered, one
    weight at a time, and copied to the CPU.
    """
    digest = hashlib.sha256()
    for module in modules:
        for weight in module.state_dict(keep_vars=True).values():
            if isinstance(weight, Tensor):
                whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
                digest.update(f"{tuple(whole.shape)} {whole.dtype}".encode())
                digest.update(whole.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
