"""The sigmoid loss of one global batch (SigLIP, arXiv 2303.15343): every pair of an image and a text by itself.

The loss is a sum over logits, so a block's gradient is known as soon as its logits are: both are computed in one
forward pass and no logits are kept. Texts of all ranks are gathered a group at a time, and the gradient of each group
is summed over the ranks and scattered, so that memory grows neither with the number of ranks nor with the square of the
batch: a group holds as many texts as a rank's share, and at least `GROUP` (fewer collectives on many ranks).

Shapes: b pairs on this rank, W ranks, N = W x b, G texts of a group, c rows of one chunk, D width of the features.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clip_lightning.distributed import all_gather, all_reduce_sum, rank_and_world, reduce_scatter
from clip_lightning.loss.positives import are_positives, check_duplicates
from clip_lightning.loss.precision import full_float32, working_dtype
from clip_lightning.loss.softmax import LossOutput

GROUP = 8192


class SigmoidLoss(nn.Module):
    """Is this image paired with this text? Summed over all N x N pairs, divided by N (Algorithm 1)."""

    def __init__(self, chunk: int, duplicates: str = "none") -> None:
        """Args: chunk: rows of logits held at a time. duplicates: "positives" counts equal pairs as paired."""
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
            logit_bias: [1], added to every logit; None: no bias.
            pair_keys: int64 [b, 2], where duplicates are positives: hash of the caption and id of the image.
        """
        assert (pair_keys is not None) == self.needs_pair_keys
        bias = torch.zeros_like(logit_scale) if logit_bias is None else logit_bias
        return LossOutput(
            *_Sigmoid.apply(image, text, logit_scale, bias, pair_keys, self.chunk, torch.is_grad_enabled())
        )


class _Sigmoid(torch.autograd.Function):
    """Loss of this rank's images with all texts; the gradients' mean over ranks is that of the global batch."""

    @staticmethod
    def forward(
        ctx: Any,
        image_bD: Tensor,
        text_bD: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        keys_b2: Tensor | None,
        chunk: int,
        grads: bool,
    ) -> tuple[Tensor, Tensor]:
        world = rank_and_world()[1]
        dtype, num_pairs = working_dtype(image_bD, text_bD), image_bD.shape[0]
        with full_float32(image_bD.device):
            block = _Blocks(image_bD.to(dtype), logit_scale.to(dtype), logit_bias.to(dtype), keys_b2, chunk, grads)
            grad_text = torch.empty_like(text_bD, dtype=dtype) if grads else block.image
            size = max(1, max(num_pairs, GROUP) // world)
            for start in range(0, num_pairs, size):
                own = slice(start, min(start + size, num_pairs))
                partial = block.add(all_gather(text_bD[own]).to(dtype), own)
                if grads:
                    grad_text[own] = reduce_scatter(partial)
            loss = block.loss / num_pairs
            accuracy = all_reduce_sum(block.is_best().to(dtype).mean()) / world
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
        return *((grad * grad_loss).reshape(shape).to(dtype) for grad, (shape, dtype) in grads), None, None, None


class _Blocks:
    """Sums of the loss and its gradients over groups of texts, before the division by b.

    Attributes:
        loss: [] so far. grad_image: [b, D], still without the factor of the scale. grad_bias: [].
        best: [b], largest logit so far. best_text: int64 [b], its text's place in the global batch.
    """

    def __init__(
        self, image_bD: Tensor, scale: Tensor, bias: Tensor, keys_b2: Tensor | None, chunk: int, grads: bool
    ) -> None:
        self.image, self.scaled, self.bias, self.chunk, self.grads = image_bD, image_bD * scale, bias, chunk, grads
        self.rank, self.world = rank_and_world()
        self.keys_b2 = keys_b2
        self.keys_N2 = None if keys_b2 is None else all_gather(keys_b2)
        self.loss, self.grad_bias = image_bD.new_zeros(()), image_bD.new_zeros(())
        self.grad_image = torch.zeros_like(image_bD) if grads else image_bD
        self.best = image_bD.new_full((image_bD.shape[0],), -torch.inf)
        self.best_text = torch.full_like(self.best, -1, dtype=torch.int64)

    def add(self, text_GD: Tensor, own: slice) -> Tensor:
        """Adds a group of texts; returns their gradient [G, D] (empty without gradients).

        Args: text_GD: of every rank in turn, the texts `own` of its share.
        """
        num_texts = text_GD.shape[0]
        grad_text = torch.zeros_like(text_GD) if self.grads else text_GD.new_empty(0)
        keys_G2 = None if self.keys_N2 is None else self.keys_N2.unflatten(0, (self.world, -1))[:, own].flatten(0, 1)
        buffer, *spare = (text_GD.new_empty(min(self.chunk, len(self.image)), num_texts) for _ in range(3))
        for start in range(0, len(self.image), self.chunk):
            rows = slice(start, min(start + self.chunk, len(self.image)))
            size = rows.stop - start
            logits = torch.mm(self.scaled[rows], text_GD.T, out=buffer[:size]).add_(self.bias)
            self._keep_best(rows, logits, own)
            self.loss += _softplus_sum(logits, *(tensor[:size] for tensor in spare))
            self._subtract_positives(rows, logits, own, keys_G2, spare[0][:size])
            if self.grads:
                self.grad_bias += logits.sum()
                self.grad_image[rows].addmm_(logits, text_GD)
                grad_text.addmm_(logits.T, self.scaled[rows])
        return grad_text

    def is_best(self) -> Tensor:
        """Whether the text with the largest logit is a positive of the image: bool [b]."""
        if self.keys_b2 is None or self.keys_N2 is None:
            first = self.rank * len(self.image)
            return self.best_text == torch.arange(first, first + len(self.image), device=self.best.device)
        return (self.keys_b2 == self.keys_N2[self.best_text]).any(1)

    def _subtract_positives(
        self, rows: slice, logits: Tensor, own: slice, keys_G2: Tensor | None, spare: Tensor
    ) -> None:
        """Subtracts the positives' logits from the loss: softplus(-x) = softplus(x) - x.

        With gradients `logits` [c, G] are overwritten by their own: sigmoid, less 1 at positives.
        """
        if self.keys_b2 is not None and keys_G2 is not None:
            positives = are_positives(self.keys_b2[rows], keys_G2)
            self.loss -= torch.mul(logits, positives, out=spare).sum()
            if self.grads:
                logits.sigmoid_().sub_(positives.to(logits.dtype))
            return
        first, last = max(rows.start, own.start), min(rows.stop, own.stop)  # pairs in these rows and columns
        column = self.rank * (own.stop - own.start) + first - own.start
        diagonal = logits[max(first - rows.start, 0) :].diagonal(column)[: max(last - first, 0)]
        self.loss -= diagonal.sum()
        if self.grads:
            logits.sigmoid_()
            diagonal.sub_(1)

    def _keep_best(self, rows: slice, logits: Tensor, own: slice) -> None:
        """Of equal logits the first text in the global batch counts, whatever the groups."""
        largest, position = logits.max(1)
        size = own.stop - own.start
        text = position // size * len(self.image) + own.start + position % size
        is_better = (largest > self.best[rows]) | ((largest == self.best[rows]) & (text < self.best_text[rows]))
        self.best_text[rows] = torch.where(is_better, text, self.best_text[rows])
        self.best[rows] = torch.where(is_better, largest, self.best[rows])


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
