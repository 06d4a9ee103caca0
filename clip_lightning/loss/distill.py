"""The softmax loss with a frozen teacher beside the labels (MobileCLIP, arXiv 2311.17049, section 4.1).

    loss = (1 - weight) softmax loss + weight / 2 (KL over the texts of each image + KL over the images of each text)

where KL(teacher || student) compares how both spread one image over the texts of the global batch, and one text over
its images, each with its own logit scale. One pass over this rank's rows, as in `softmax.py`: each chunk of logits is
computed with the teacher's, and the sums of both over columns are accumulated. The worked example of docs/how-to.md.

Shapes: b pairs on this rank, N pairs over all ranks, c rows of one chunk, D and T widths of student and teacher.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clip_lightning.distributed import all_gather, all_reduce_max, all_reduce_sum, rank_and_world, reduce_scatter
from clip_lightning.errors import UserError
from clip_lightning.loss.precision import full_float32, working_dtype
from clip_lightning.loss.softmax import LossOutput, logit_chunks


class DistillLoss(nn.Module):
    """The softmax loss of the pairs, and the divergence from a teacher over all pairs of the batch."""

    needs_teacher = True

    def __init__(self, chunk: int, weight: float = 0.5) -> None:
        """Args: chunk: rows of logits held at a time. weight: share of the teacher; at 1 the labels play no part."""
        super().__init__()
        if not 0 < weight <= 1:
            raise UserError(
                f"loss.options.weight={weight} must be above 0 and at most 1; without a teacher: loss=softmax"
            )
        self.chunk, self.weight = chunk, weight

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        *,
        teacher_image: Tensor,
        teacher_text: Tensor,
        teacher_scale: Tensor,
    ) -> LossOutput:
        """The loss of the global batch of which these are this rank's features.

        Args:
            image, text: normalised features [b, D] of any floating dtype; b is the same on every rank.
            logit_scale: [1], the factor of the cosines itself (not its logarithm).
            logit_bias: taken for the common signature; a bias of all logits does not change a softmax.
            teacher_image, teacher_text: the teacher's normalised features [b, T] of the same pairs; get no gradient.
            teacher_scale: [1], the teacher's own logit scale.
        """
        teacher = teacher_image.to(working_dtype(image, text)) * teacher_scale, teacher_text
        return LossOutput(*_Distill.apply(image, text, logit_scale, *teacher, self.weight, self.chunk))


class _Distill(torch.autograd.Function):
    """Loss of the rows of this rank; the gradients' mean over ranks is the gradient of the global batch."""

    @staticmethod
    def forward(
        ctx: Any, image_bD: Tensor, text_bD: Tensor, logit_scale: Tensor,
        teacher_bT: Tensor, teacher_text_bT: Tensor, weight: float, chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rank, world = rank_and_world()
        dtype, num_pairs = working_dtype(image_bD, text_bD), image_bD.shape[0]
        with full_float32(image_bD.device):
            text_ND, teacher_text_NT = all_gather(text_bD), all_gather(teacher_text_bT)
            found = _Rows(
                image_bD.to(dtype) * logit_scale.to(dtype), text_ND.to(dtype),
                teacher_bT.to(dtype), teacher_text_NT.to(dtype), rank * num_pairs, chunk,
            )  # fmt: skip
            column_lse, _ = found.columns.over_ranks()
            teacher_column_lse, column_gap = found.teacher_columns.over_ranks()
            own = slice(rank * num_pairs, (rank + 1) * num_pairs)
            labels = (found.lse - found.positive).mean() + (column_lse[own] - found.positive).mean()
            divergence = (found.gap - found.teacher_lse + found.lse).mean()
            divergence = divergence + (column_gap - teacher_column_lse + column_lse)[own].mean()
            loss = ((1 - weight) * labels + weight * divergence) / 2
            accuracy = all_reduce_sum(found.is_best.to(dtype).mean()) / world
        ctx.save_for_backward(
            image_bD, text_ND, logit_scale, teacher_bT, teacher_text_NT,
            found.lse, column_lse, found.teacher_lse, teacher_column_lse,
        )  # fmt: skip
        ctx.first, ctx.chunk, ctx.weight, ctx.text_dtype = rank * num_pairs, chunk, weight, text_bD.dtype
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        image_bD, text_ND, logit_scale, teacher_bT, teacher_text_NT, *lses = ctx.saved_tensors
        row_lse, column_lse, teacher_row_lse, teacher_column_lse = lses
        with full_float32(image_bD.device):
            image, text, scale, teacher, teacher_text = (
                tensor.to(row_lse.dtype) for tensor in (image_bD, text_ND, logit_scale, teacher_bT, teacher_text_NT)
            )
            scaled_bD = image * scale
            grad_image, grad_text = torch.empty_like(image), torch.zeros_like(text)
            pieces = zip(
                logit_chunks(scaled_bD, text, ctx.chunk), logit_chunks(teacher, teacher_text, ctx.chunk), strict=True
            )
            for (rows, logits, spare), (__, wanted, wanted_spare) in pieces:
                # d loss / d logit, over 2 b: softmax over the row + softmax over the column, less what is aimed at:
                # (1 - weight) x 2 at the pair, and weight x the same two of the teacher.
                _add_softmaxes(logits, row_lse[rows, None], column_lse, spare)
                _add_softmaxes(wanted, teacher_row_lse[rows, None], teacher_column_lse, wanted_spare)
                logits.sub_(wanted, alpha=ctx.weight).diagonal(ctx.first + rows.start).sub_(2 * (1 - ctx.weight))
                torch.mm(logits, text, out=grad_image[rows])
                grad_text.addmm_(logits.T, scaled_bD[rows])
            factor = grad_loss / (2 * image.shape[0])
            grad_scale = (image * grad_image).sum() * factor
            grad_image *= factor * scale
            grad_text = reduce_scatter(grad_text.mul_(factor))
        return (
            grad_image.to(image_bD.dtype),
            grad_text.to(ctx.text_dtype),
            grad_scale.reshape(logit_scale.shape).to(logit_scale.dtype),
            None, None, None, None,
        )  # fmt: skip


def _add_softmaxes(logits: Tensor, row_lse: Tensor, column_lse: Tensor, spare: Tensor) -> None:
    """Puts softmax over the row + softmax over the column in the place of logits [c, N]."""
    torch.sub(logits, row_lse, out=spare).exp_()
    logits.sub_(column_lse).exp_().add_(spare)


class _Rows:
    """One pass over this rank's rows.

    Attributes:
        lse, teacher_lse: [b], log-sum-exp of student and teacher.
        gap: [b], mean of teacher's less student's logits under the teacher's softmax over the row.
        positive: [b], logit of the pair. is_best: [b], whether the pair's text is the row's best.
        columns, teacher_columns: the same over columns, so far of this rank's rows.
    """

    def __init__(
        self, scaled_bD: Tensor, text_ND: Tensor, teacher_bT: Tensor, teacher_text_NT: Tensor, first: int, chunk: int
    ) -> None:
        self.lse, self.teacher_lse, self.gap, self.positive = (scaled_bD.new_empty(len(scaled_bD)) for _ in range(4))
        self.is_best = torch.empty_like(self.lse, dtype=torch.bool)
        self.columns, self.teacher_columns = _Columns(text_ND), _Columns(text_ND)
        pieces = zip(
            logit_chunks(scaled_bD, text_ND, chunk), logit_chunks(teacher_bT, teacher_text_NT, chunk), strict=True
        )
        for (rows, logits, spare), (_, wanted, wanted_spare) in pieces:
            self.positive[rows] = logits.diagonal(first + rows.start)
            own = torch.arange(first + rows.start, first + rows.stop, device=logits.device)
            self.is_best[rows] = logits.argmax(1) == own
            self.lse[rows] = logits.logsumexp(1)
            self.columns.add(logits, spare)
            gap = torch.sub(wanted, logits, out=spare)
            self.teacher_lse[rows] = wanted.logsumexp(1)
            torch.sub(wanted, self.teacher_lse[rows, None], out=wanted_spare).exp_()
            self.gap[rows] = torch.mul(wanted_spare, gap, out=logits).sum(1)
            self.teacher_columns.add(wanted, wanted_spare, gap)


class _Columns:
    """Log-sum-exp of every column, and a mean under its softmax, over rows that come in pieces and on all ranks."""

    def __init__(self, text_ND: Tensor) -> None:
        self.top = text_ND.new_full((len(text_ND),), -torch.inf)
        self.total, self.weighted = torch.zeros_like(self.top), torch.zeros_like(self.top)

    def add(self, logits: Tensor, spare: Tensor, values: Tensor | None = None) -> None:
        """Takes some rows in: logits, and values whose mean is wanted, [c, N]; `spare` is overwritten."""
        top = torch.maximum(self.top, logits.amax(0))
        shrunk = (self.top - top).exp_()
        torch.sub(logits, top, out=spare).exp_()
        self.total.mul_(shrunk).add_(spare.sum(0))
        if values is not None:
            self.weighted.mul_(shrunk).add_(spare.mul_(values).sum(0))
        self.top = top

    def over_ranks(self) -> tuple[Tensor, Tensor]:
        """Log-sum-exp [N] and mean [N] over the rows of all ranks."""
        top = all_reduce_max(self.top.clone())
        shrunk = (self.top - top).exp()
        total, weighted = all_reduce_sum(torch.stack([self.total, self.weighted]) * shrunk)
        return top + total.log(), weighted / total
