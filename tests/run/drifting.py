"""A user's own tower that one rank computes wrongly: from its fifth batch on, a weight is a little off there."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Tower(nn.Module):
    num_features = 16

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, self.num_features))
        self.num_batches = 0

    def forward(self, images: Tensor) -> Tensor:
        self.num_batches += self.training
        if self.num_batches == 5 and dist.get_rank() == 1:
            with torch.no_grad():
                self.get_parameter("layers.1.weight")[0, 0] += 1e-6
        features: Tensor = self.layers(images)
        return features
