"""A hash of a model's weights: the same for whole weights and for shards, and on every device."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_MULTIPLIER, _INCREMENT = 6364136223846793005, 1442695040888963407  # of Knuth's 64-bit linear congruential generator
_CHUNK = 2**24  # elements hashed at once: 0.3 GiB of int64 and its products


@torch.no_grad()
def weights_hash(modules: Iterable[nn.Module]) -> str:
    """16 hexadecimal digits of all parameters and persistent buffers, bit by bit, in the order of the state dicts.

    Each element's bits are multiplied by an odd number that depends on its place, so that two weights that change
    places are seen; sums are modulo 2^64, where every order of adding gives the same. Names do not enter: compiling and
    wrapping rename weights. Two different sets of weights share a hash with a probability of about 2^-64.
    To be called on every rank: shards are gathered, one weight at a time.
    """
    total = 0
    for module in modules:
        for weight in module.state_dict(keep_vars=True).values():
            if isinstance(weight, Tensor):
                whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
                total = (total * _MULTIPLIER + _of_tensor(whole.detach())) % 2**64
    return f"{total:016x}"


def _of_tensor(weight: Tensor) -> int:
    flat = weight.contiguous().flatten()
    bits = flat.view(torch.uint8) if flat.dtype == torch.bool else flat.view(_INTEGERS[flat.element_size()])
    total = len(flat) + 1
    for start in range(0, len(bits), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64)
        place = torch.arange(start, start + len(part), device=part.device)
        factors = (place * _MULTIPLIER + _INCREMENT) | 1
        factors = (factors ^ (factors >> 29)) * _MULTIPLIER | 1
        total += int((part * factors).sum())
    return total % 2**64


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
