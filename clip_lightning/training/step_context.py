"""What a training step hands to the layers that `prepare_model` has exchanged."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class GroupPlan(NamedTuple):
    """How a forward pass groups texts by length.

    Attributes:
        groups: the samples of each group, int64 [n], and where its texts are cut.
        back: int64 [b], restores the order of the samples.
    """

    groups: list[tuple[Tensor, int]]
    back: Tensor


@dataclass(frozen=True)
class StepContext:
    """One forward pass on b pairs.

    Attributes:
        keys: int64 [b], of random draws.
        patch_dropout: share of patches left out; None: what each layer was built with.
        samples: int64 [b, 3] on the CPU, id and content hashes of each sample; see `LockedTowers.samples`.
        plan: groups of the texts by length; None: the texts are encoded in one piece.
    """

    keys: Tensor
    patch_dropout: float | None = None
    samples: Tensor | None = None
    plan: GroupPlan | None = None


class CurrentStep:
    """Where the exchanged layers of one model find the context of the forward pass that they are in.

    Attributes:
        context: kept through the backward pass, which may compute activations again; None outside of training steps.
    """

    def __init__(self) -> None:
        self.context: StepContext | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Inside, forward passes set `context`; afterwards there is none."""
        try:
            yield
        finally:
            self.context = None
