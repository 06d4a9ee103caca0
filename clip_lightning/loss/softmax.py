"""The softmax loss (InfoNCE) of one global batch: exact on any number of ranks, chunk x N logits at a time.

One pass over this rank's rows gives their log-sum-exp and, online, that of every column; two small all-reduces complete
the columns. The backward pass computes the logits again instead of keeping them. One modality is gathered, and its
gradient is reduced and scattered: 8 N D FLOPs a pair (two matrix products of b x N fewer than with both gathered).

Shapes: b pairs on this rank, N pairs over all ranks, c rows of one chunk, D width of the features.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clip_lightning.distributed import all_gather, all_reduce_max, all_reduce_sum, rank_and_world, reduce_scatter
from clip_lightning.loss.positives import OwnPairs, SharedPositives, check_duplicates
from clip_lightning.loss.precision import full_float32, working_dtype


class LossOutput(NamedTuple):
    """loss [] float32: this rank's part, whose mean over ranks is the global batch's. accuracy [] float32: global."""

    loss: Tensor
    accuracy: Tensor


class SoftmaxLoss(nn.Module):
    """Cross entropy of every image over all texts and of every text over all images (paper section 2.3, Figure 3)."""

    def __init__(self, chunk: int, duplicates: str = "none") -> None:
        """Args: chunk: rows of logits held at a time. duplicates: "positives" shares targets over equal pairs."""
        super().__init__()
        self.chunk, self.needs_pair_keys = chunk, check_duplicates(duplicates)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        *,
        pair_keys: Tensor | None = None,
    ) -> LossOutput:
        """The loss of the global batch of which these are this rank's features.

        Args:
            image, text: normalised features [b, D] of any floating dtype; b is the same on every rank.
            logit_scale: [1], the factor of the cosines itself (not its logarithm).
            logit_bias: taken for the common signature; a bias of all logits does not change a softmax.
            pair_keys: int64 [b, 2], where duplicates are positives: hash of the caption and id of the image.
        """
        assert (pair_keys is not None) == self.needs_pair_keys
        return LossOutput(*_Softmax.apply(image, text, logit_scale, pair_keys, self.chunk))


class _Softmax(torch.autograd.Function):
    """Loss of the rows of this rank; the gradients' mean over ranks is the gradient of the global batch."""

    @staticmethod
    def forward(
        ctx: Any, image_bD: Tensor, text_bD: Tensor, logit_scale: Tensor, keys_b2: Tensor | None, chunk: int
    ) -> tuple[Tensor, Tensor]:
        rank, world = rank_and_world()
        dtype = working_dtype(image_bD, text_bD)
        first = rank * image_bD.shape[0]
        targets = OwnPairs(first) if keys_b2 is None else SharedPositives(keys_b2, chunk, dtype)
        with full_float32(image_bD.device):
            text_ND = all_gather(text_bD)
            scaled_bD = image_bD.to(dtype) * logit_scale.to(dtype)
            row_lse, column_max, column_sum, positive, is_best = _statistics(
                scaled_bD, text_ND.to(dtype), targets, chunk
            )
            column_top = all_reduce_max(column_max.clone())
            column_lse = column_top + all_reduce_sum(column_sum * (column_max - column_top).exp()).log()
            own_lse = column_lse[first : first + image_bD.shape[0]]
            loss = ((row_lse - positive).mean() + (own_lse - positive).mean()) / 2
            accuracy = all_reduce_sum(is_best.to(dtype).mean()) / world
        ctx.save_for_backward(image_bD, text_ND, logit_scale, row_lse, column_lse)
        ctx.targets, ctx.chunk, ctx.text_dtype = targets, chunk, text_bD.dtype
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        image_bD, text_ND, logit_scale, row_lse, column_lse = ctx.saved_tensors
        with full_float32(image_bD.device):
            image, text, scale = (tensor.to(row_lse.dtype) for tensor in (image_bD, text_ND, logit_scale))
            scaled_bD = image * scale
            grad_image, grad_text = torch.empty_like(image), torch.zeros_like(text)
            for rows, logits, spare in logit_chunks(scaled_bD, text, ctx.chunk):
                # d loss / d logit = softmax over the row + softmax over the column - both targets, over 2 b
                torch.sub(logits, row_lse[rows, None], out=spare).exp_()
                logits.sub_(column_lse).exp_().add_(spare)
                ctx.targets.subtract(logits, rows)
                torch.mm(logits, text, out=grad_image[rows])
                grad_text.addmm_(logits.T, scaled_bD[rows])
            weight = grad_loss / (2 * image.shape[0])
            grad_scale = (image * grad_image).sum() * weight
            grad_image *= weight * scale
            grad_text = reduce_scatter(grad_text.mul_(weight))
        return (
            grad_image.to(image_bD.dtype),
            grad_text.to(ctx.text_dtype),
            grad_scale.reshape(logit_scale.shape).to(logit_scale.dtype),
            None,
            None,
        )


def logit_chunks(scaled_bD: Tensor, text_ND: Tensor, chunk: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The logits of some rows [c, N] with a spare tensor of their shape; both are overwritten by the next."""
    size = min(chunk, scaled_bD.shape[0])
    buffer, spare = (scaled_bD.new_empty(size, text_ND.shape[0]) for _ in range(2))
    for start in range(0, scaled_bD.shape[0], chunk):
        rows = slice(start, min(start + chunk, scaled_bD.shape[0]))
        logits = torch.mm(scaled_bD[rows], text_ND.T, out=buffer[: rows.stop - start])
        yield rows, logits, spare[: rows.stop - start]


def _statistics(
    scaled_bD: Tensor, text_ND: Tensor, targets: OwnPairs | SharedPositives, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Row log-sum-exp [b]; column maximum [N] and sum of exponentials [N] over these rows; mean logit of the positives
    [b]; whether the row's best text is a positive [b].
    """
    row_lse, positive = (scaled_bD.new_empty(scaled_bD.shape[0]) for _ in range(2))
    is_best = torch.empty_like(row_lse, dtype=torch.bool)
    column_max, column_sum = text_ND.new_full((text_ND.shape[0],), -torch.inf), text_ND.new_zeros(text_ND.shape[0])
    for rows, logits, spare in logit_chunks(scaled_bD, text_ND, chunk):
        positive[rows] = targets.positive(logits, rows)
        row_max, best = logits.max(1)
        is_best[rows] = targets.is_positive(best, rows)
        torch.sub(logits, row_max[:, None], out=spare).exp_()
        row_lse[rows] = spare.sum(1).log_() + row_max
        top = torch.maximum(column_max, logits.amax(0))
        column_sum.mul_((column_max - top).exp_()).add_(logits.sub_(top).exp_().sum(0))
        column_max = top
    return row_lse, column_max, column_sum, positive, is_best
