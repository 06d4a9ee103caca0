"""Which texts of the global batch are positives of which images: each image's own, or also equal captions and images.

Web captions repeat: with one target for each image, an equal caption beside it counts as a negative, and a batch of one
caption keeps the loss at ln N. With `loss.duplicates=positives` pairs i and j are positives of each other where their
captions or their images are equal.

Shapes: b pairs on this rank, N pairs over all ranks, c rows of one chunk.
"""

import torch
from torch import Tensor

from clip_lightning.distributed import all_gather
from clip_lightning.errors import UserError

DUPLICATES = ("none", "positives")


def check_duplicates(duplicates: str) -> bool:
    """Whether positives are shared. Raises: UserError for another value than those of `DUPLICATES`."""
    if duplicates not in DUPLICATES:
        raise UserError(f"loss.duplicates={duplicates} must be one of {', '.join(DUPLICATES)}")
    return duplicates == "positives"


def are_positives(keys_c2: Tensor, keys_N2: Tensor) -> Tensor:
    """Whether pairs are positives of each other: bool [c, N].

    Args: keys_c2, keys_N2: int64, a hash of the caption's tokens and the id of the image.
    """
    captions, images = (keys_c2[:, None, part] == keys_N2[:, part] for part in (0, 1))
    return captions.logical_or_(images)


class OwnPairs:
    """Targets of the softmax loss where each image has one positive: its own text."""

    def __init__(self, first: int) -> None:
        """Args: first: place of this rank's first pair in the global batch."""
        self.first = first

    def positive(self, logits: Tensor, rows: slice) -> Tensor:
        """Mean logit [c] of the positives; `logits` are these rows' [c, N]."""
        return logits.diagonal(self.first + rows.start)

    def is_positive(self, columns: Tensor, rows: slice) -> Tensor:
        """Whether the text at `columns`, int64 [c], is a positive of each row: bool [c]."""
        return columns == torch.arange(self.first + rows.start, self.first + rows.stop, device=columns.device)

    def subtract(self, logits: Tensor, rows: slice, weight: float = 1) -> None:
        """Subtracts, in place, the target of the rows and the target of the columns, times `weight`, from [c, N]."""
        logits.diagonal(self.first + rows.start).sub_(2 * weight)


class SharedPositives:
    """Targets of the softmax loss that are spread evenly over all positives of an image, and of a text.

    Image i with n_i positives has target 1 / n_i at each of them, and text j has 1 / n_j. The relation is symmetric, so
    one vector of counts holds both.
    """

    def __init__(self, keys_b2: Tensor, chunk: int, dtype: torch.dtype) -> None:
        """Args: keys_b2: this rank's, as `are_positives` takes them. chunk: rows at a time. dtype: of the logits."""
        self.keys_b2, self.keys_N2 = keys_b2, all_gather(keys_b2)
        counts = [are_positives(keys, self.keys_N2).sum(1) for keys in keys_b2.split(chunk)]
        self.share_b = torch.cat(counts).to(dtype).reciprocal_()
        self.share_N = all_gather(self.share_b)

    def positive(self, logits: Tensor, rows: slice) -> Tensor:
        """Mean logit [c] of the positives, over those of the row and those of the columns."""
        return (self._weights(rows) * logits).sum(1) / 2

    def is_positive(self, columns: Tensor, rows: slice) -> Tensor:
        """Whether the text at `columns`, int64 [c], is a positive of each row: bool [c]."""
        return (self.keys_b2[rows] == self.keys_N2[columns]).any(1)

    def subtract(self, logits: Tensor, rows: slice, weight: float = 1) -> None:
        """Subtracts, in place, the target of the rows and the target of the columns, times `weight`, from [c, N]."""
        logits.sub_(self._weights(rows), alpha=weight)

    def _weights(self, rows: slice) -> Tensor:
        return are_positives(self.keys_b2[rows], self.keys_N2) * (self.share_b[rows, None] + self.share_N)
