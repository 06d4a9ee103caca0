"""Dropout that depends on the sample alone: not on the rank, the micro-batch, or earlier draws.

torch draws for a whole batch from one hidden state, so splitting the batch in another way changes what is dropped. Here
every draw is a hash of (seed, epoch, sample id, layer, element), so that a step is the same on 1 and 64 ranks, in one
piece or in a thousand, and again after a resume. The layers of the towers are replaced; they have no parameters, and
names in the state dict do not change.
"""

from typing import Any

import torch
from timm.layers import DropPath, PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn

from clip_lightning.errors import UserError
from clip_lightning.training.step_context import CurrentStep, StepContext

_FIRST, _SECOND = -4658895280553007687, -7723592293110705685  # splitmix64's multipliers as int64
_STEP = -7046029254386353131


def mixed(words: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 (Steele, Lea, Flood 2014): a bijection that scatters every bit."""
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def combined(words: Tensor, part: Tensor | int) -> Tensor:
    """A hash of `words` and one more number; int64, broadcast."""
    return mixed(words * _FIRST + part + _STEP)


def sample_keys(seed: int, epochs: Tensor, sample_ids: Tensor) -> Tensor:
    """One int64 key [b] for each sample of a batch; `epochs` and `sample_ids` are int64 [b]."""
    return combined(combined(combined(torch.zeros_like(sample_ids), seed), epochs), sample_ids)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: torch's own keeps the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(keys: Tensor, layer: Tensor, shape: torch.Size) -> Tensor:
    """Float32 in [0, 1) of `shape` [B, ...], with the full 24 bits, for the samples of `keys` [B].

    Raises: UserError where a tower has put parts of images into the rows of a batch.
    """
    if len(keys) != shape[0]:
        raise UserError(
            f"a tower drops at random in {shape[0]} rows for {len(keys)} samples, as one with windows does, "
            "and which sample a row belongs to is not known there; leave its dropout out"
        )
    elements = torch.arange(shape[1:].numel(), device=keys.device)
    words = combined(combined(keys, layer)[:, None], elements)
    return (_shifted(words, 40).float() * 2.0**-24).view(shape)


class _SampleLayer(nn.Module):
    """A layer that draws by sample in training and returns its input otherwise.

    What differs between the layers of different blocks is in tensors: torch.compile makes a new graph for another
    number.
    """

    def __init__(self, step: CurrentStep, layer: int, replaced: Any) -> None:
        super().__init__()
        self.step, self.replaced = step, (replaced,)
        self.layer = nn.Buffer(torch.tensor(layer), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._draw(x, self.replaced[0]) if self.training else x

    def _draw(self, x: Tensor, settings: Any) -> Tensor:
        """`x` [B, ...] with something left out, by the settings of the layer that this one replaced."""
        raise AssertionError("each kind of layer draws in its own way")

    def _context(self) -> StepContext:
        context = self.step.context
        assert context is not None, "the context is set before a forward pass in training"
        return context


class SamplePatchDropout(_SampleLayer):
    """Leaves out a share of the patches of each image (FLIP, arXiv 2212.00794)."""

    def _draw(self, x: Tensor, settings: PatchDropout) -> Tensor:
        return self._kept(x, settings)[0]

    def _kept(self, x: Tensor, settings: Any) -> tuple[Tensor, Tensor | None]:
        context = self._context()
        share = settings.prob if context.patch_dropout is None else context.patch_dropout
        if not share:
            return x, None
        prefix, patches = x[:, : settings.num_prefix_tokens], x[:, settings.num_prefix_tokens :]
        num_kept = max(1, int(patches.shape[1] * (1 - share)))
        order = uniforms(context.keys, self.layer, patches.shape[:2]).argsort(dim=1, stable=True)
        kept = order[:, :num_kept].sort(dim=1).values
        patches = patches.gather(1, kept[:, :, None].expand(-1, -1, patches.shape[2]))
        return torch.cat([prefix, patches], dim=1), kept


class SamplePatchDropoutWithIndices(SamplePatchDropout):
    """The same for towers with rotary positions (EVA), which need to know which patches are left."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """What is kept of `x`, and which patches; None where it is all of them."""
        return self._kept(x, self.replaced[0]) if self.training else (x, None)


class SampleDropPath(_SampleLayer):
    """Leaves out the whole branch of some samples (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, step: CurrentStep, layer: int, replaced: DropPath) -> None:
        super().__init__(step, layer, replaced)
        self.keep = nn.Buffer(torch.tensor(1 - replaced.drop_prob), persistent=False)

    def _draw(self, x: Tensor, settings: DropPath) -> Tensor:
        kept = uniforms(self._context().keys, self.layer, torch.Size((x.shape[0],))) < self.keep
        factor = kept / self.keep if settings.scale_by_keep else kept
        return x * factor.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


class SampleDropout(_SampleLayer):
    """Leaves out single numbers."""

    @property
    def p(self) -> float:
        """For attention that reads its layer's share and drops by itself, which `check_draws` refuses."""
        return float(self.replaced[0].p)

    def _draw(self, x: Tensor, settings: nn.Dropout) -> Tensor:
        kept = uniforms(self._context().keys, self.layer, x.shape) >= settings.p
        return x * kept / (1 - settings.p)


def apply(model: nn.Module, step: CurrentStep) -> None:
    """Replaces every layer of `model` that drops at random by one that reads its keys from `step`."""
    kinds = {
        PatchDropout: SamplePatchDropout,
        PatchDropoutWithIndices: SamplePatchDropoutWithIndices,
        DropPath: SampleDropPath,
        nn.Dropout: SampleDropout,
    }
    layer = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            kind = kinds.get(type(child))
            if kind is not None and _probability(child) > 0:
                parent.add_module(name, kind(step, layer, child).train(child.training))
                layer += 1


def is_random(module: nn.Module) -> bool:
    """Whether a layer below `module` drops at random, after `apply`."""
    return any(isinstance(layer, _SampleLayer) for layer in module.modules())


def _probability(layer: Any) -> float:
    if isinstance(layer, PatchDropout | PatchDropoutWithIndices):
        return float(layer.prob)
    return float(layer.drop_prob if isinstance(layer, DropPath) else layer.p)
