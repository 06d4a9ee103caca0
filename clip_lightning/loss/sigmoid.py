"""The sigmoid loss of one global batch (SigLIP, arXiv 2303.15343): every pair of an image and a text by itself.

The loss is a sum over logits, so a block's gradient is known as soon as its logits are: both are taken in one forward
pass and no logits are kept. The ranks' texts come by in turn, and the gradient of each is summed at its owner, so that
memory grows neither with the number of ranks nor with the square of the batch.

Shapes: b pairs on this rank, c rows of one chunk, D width of the features.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clip_lightning.distributed import all_reduce_sum, rank_and_world, share_of, sum_at
from clip_lightning.loss.precision import full_float32, working_dtype
from clip_lightning.loss.softmax import LossOutput


class SigmoidLoss(nn.Module):
    """Is this image paired with this text? Summed over all N x N pairs, divided by N (Algorithm 1)."""

    def __init__(self, chunk: int) -> None:
        """Args: chunk: rows of logits held at a time."""
        super().__init__()
        self.chunk = chunk

    def forward(self, image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None) -> LossOutput:
        """The loss of the global batch of which these are this rank's features.

        Args:
            image, text: normalised features [b, D] of any floating dtype; b is the same on every rank.
            logit_scale: [1], the factor of the cosines itself (not its logarithm).
            logit_bias: [1], added to every logit; None: no bias.
        """
        bias = torch.zeros_like(logit_scale) if logit_bias is None else logit_bias
        return LossOutput(*_Sigmoid.apply(image, text, logit_scale, bias, self.chunk, torch.is_grad_enabled()))


class _Sigmoid(torch.autograd.Function):
    """Loss of this rank's images with all texts; the gradients' mean over ranks is that of the global batch."""

    @staticmethod
    def forward(
        ctx: Any, image_bD: Tensor, text_bD: Tensor, logit_scale: Tensor, logit_bias: Tensor, chunk: int, grads: bool
    ) -> tuple[Tensor, Tensor]:
        rank, world = rank_and_world()
        dtype, num_pairs = working_dtype(image_bD, text_bD), image_bD.shape[0]
        with full_float32(image_bD.device):
            block = _Blocks(image_bD.to(dtype), logit_scale.to(dtype), logit_bias.to(dtype), chunk, grads)
            grad_text = torch.empty(0)
            for source in range(world):
                partial = block.add(share_of(source, text_bD).to(dtype), is_own=source == rank)
                if grads:
                    sum_at(source, partial)
                    grad_text = partial if source == rank else grad_text
            loss = block.loss / num_pairs
            accuracy = all_reduce_sum(block.own_is_best.to(dtype).mean()) / world
            if grads:
                grad_scale = (block.image * block.grad_image).sum() / num_pairs
                block.grad_image *= logit_scale.to(dtype) / num_pairs
                grad_bias = block.grad_bias / num_pairs
                ctx.save_for_backward(block.grad_image, grad_text.div_(num_pairs), grad_scale, grad_bias)
                ctx.inputs = [(tensor.shape, tensor.dtype) for tensor in (image_bD, text_bD, logit_scale, logit_bias)]
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = zip(ctx.saved_tensors, ctx.inputs, strict=True)
        return *((grad * grad_loss).reshape(shape).to(dtype) for grad, (shape, dtype) in grads), None, None


class _Blocks:
    """Sums of the loss and its gradients over blocks of texts, before the division by b.

    Attributes:
        loss: [] so far. grad_image: [b, D], still without the factor of the scale. grad_bias: [].
        own_is_best: [b], whether no text so far has a larger logit than the pair's own.
    """

    def __init__(self, image_bD: Tensor, scale: Tensor, bias: Tensor, chunk: int, grads: bool) -> None:
        self.image, self.scaled, self.bias, self.chunk, self.grads = image_bD, image_bD * scale, bias, chunk, grads
        self.loss, self.grad_bias = image_bD.new_zeros(()), image_bD.new_zeros(())
        self.grad_image = torch.zeros_like(image_bD) if grads else image_bD
        self.best = image_bD.new_full((image_bD.shape[0],), -torch.inf)
        self.own_is_best = torch.zeros_like(self.best, dtype=torch.bool)

    def add(self, text_bD: Tensor, *, is_own: bool) -> Tensor:
        """Adds the block of these texts; returns their gradient [b, D] (empty without gradients)."""
        num_pairs = text_bD.shape[0]
        grad_text = torch.zeros_like(text_bD) if self.grads else text_bD.new_empty(0)
        buffer, *spare = (text_bD.new_empty(min(self.chunk, num_pairs), num_pairs) for _ in range(3))
        for start in range(0, num_pairs, self.chunk):
            rows = slice(start, min(start + self.chunk, num_pairs))
            size = rows.stop - start
            logits = torch.mm(self.scaled[rows], text_bD.T, out=buffer[:size]).add_(self.bias)
            self._rank(rows, logits, is_own)
            self.loss += _softplus_sum(logits, *(tensor[:size] for tensor in spare))
            own = logits.diagonal(start)
            if is_own:
                self.loss -= own.sum()  # softplus(-x) = softplus(x) - x
            if self.grads:
                logits.sigmoid_()
                if is_own:
                    own.sub_(1)
                self.grad_bias += logits.sum()
                self.grad_image[rows].addmm_(logits, text_bD)
                grad_text.addmm_(logits.T, self.scaled[rows])
        return grad_text

    def _rank(self, rows: slice, logits: Tensor, is_own: bool) -> None:
        largest, position = logits.max(1)
        better = largest > self.best[rows]
        at_own = position == torch.arange(rows.start, rows.stop, device=position.device)
        self.own_is_best[rows] = torch.where(better, at_own & is_own, self.own_is_best[rows])
        self.best[rows] = torch.where(better, largest, self.best[rows])


def _softplus_sum(logits: Tensor, exponential: Tensor, spare: Tensor) -> Tensor:
    """The sum of log(1 + exp(x)): max(x, 0) + log1p(exp(-|x|)). The spare tensors are overwritten.

    On a CPU torch's log1p takes as long as the matrix product before it, twelve times its log. With w = 1 + u rounded,
    log1p(u) = log(w) + (u - (w - 1)) / w, where w - 1 is exact and the next term is below 1e-15 of u.
    """
    if logits.device.type != "cpu":
        return nn.functional.softplus(logits, threshold=40).sum()
    total = torch.clamp(logits, min=0, out=spare).sum()
    torch.abs(logits, out=exponential).neg_().exp_()
    one_plus = torch.add(exponential, 1, out=spare)
    exponential.sub_(one_plus - 1).div_(one_plus)
    return total + exponential.sum() + one_plus.log_().sum()
