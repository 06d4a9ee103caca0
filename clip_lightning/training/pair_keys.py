"""What makes two pairs of a batch duplicates of each other: a hash of the caption's tokens, and the sample id."""

import torch
from torch import Tensor

from clip_lightning.training.sample_randomness import combined, mixed


def pair_keys(tokens: Tensor, lengths: Tensor, sample_ids: Tensor) -> Tensor:
    """Keys of b pairs, int64 [b, 2], for a loss with `duplicates="positives"`; nothing is read on the host.

    Two captions have one hash of 64 bits where their tokens are equal, whatever the padding behind them, which differs
    between ranks and micro-batches. Of other captions in a batch of 2^15, two share a hash with probability 2^-35.

    Args: tokens: int64 [b, L]. lengths: int64 [b], tokens that are not padding. sample_ids: int64 [b].
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    words = combined(mixed(positions).expand_as(tokens), tokens)
    captions = (words * (positions < lengths[:, None])).sum(1)
    return torch.stack([captions, sample_ids], dim=1)
