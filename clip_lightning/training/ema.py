"""A running average of the weights (EMA), evaluated beside the raw ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clip_lightning.compat import BatchNorm
from clip_lightning.reliability.shards import SavedRows, laid_out


class EmaWeights:
    """average = decay x average + (1 - decay) x value after every step, for each weight that is trained.

    The running statistics of batch norm are averaged with the weights to which they belong.

    Attributes:
        average: by name, of the weight's shape, dtype and device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.average: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Starts from the current weights, unless an average was loaded, which may have been before they were moved."""
        weights = self._trained()
        if self.average:
            self.average = {name: value.to(weights[name].device) for name, value in self.average.items()}
        else:
            self.average = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, is_skipped: Tensor) -> None:
        """Updates the average with the weights, unless the step was skipped (1 in a float tensor [], on the device)."""
        weight = (1 - self.decay) * (1 - is_skipped)
        for name, parameter in self._trained().items():
            self.average[name].lerp_(parameter, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model computes with the average."""
        raw = {name: parameter.detach().clone() for name, parameter in self._trained().items()}
        self.put()
        try:
            yield
        finally:
            self._put(raw)

    def put(self) -> None:
        """Replaces the model's weights by the average."""
        self._put(self.average)

    def load(self, average: dict[str, Tensor | SavedRows]) -> None:
        """Continues a saved average; a weight that it lacks, as after `allow_changed`, starts from its value now."""
        self.average = {
            name: laid_out(average[name], weight) if name in average else weight.detach().clone()
            for name, weight in self._trained().items()
        }

    def _trained(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        for layer, module in self.model.named_modules():
            if isinstance(module, BatchNorm) and module.running_mean is not None:
                found |= {f"{layer}.{name}": getattr(module, name) for name in ("running_mean", "running_var")}
        return found

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._trained().items():
            parameter.copy_(weights[name])
