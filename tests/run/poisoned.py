"""A user's own data, tower and losses: some samples are pictures without a content, and on those the loss breaks."""

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.layout import RawSample
from clip_lightning.data.scenes.scenes import Scenes
from clip_lightning.loss import LossOutput, SoftmaxLoss


class PoisonedScenes(Scenes):
    """The embedded scenes, of which those with `poisoned` ids are black."""

    def __init__(self, config: DataConfig, poisoned: list[int]) -> None:
        self.poisoned = set(poisoned)

    def read(self, sample_id: int) -> RawSample:
        sample = super().read(sample_id)
        return sample._replace(image=np.zeros_like(sample.image)) if sample_id in self.poisoned else sample


class Tower(nn.Module):
    """Sees whether an image of its newest batch has no content."""

    num_features = 16
    sees_poison = False

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, self.num_features))

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type != "meta":
            flat = images.flatten(1)
            Tower.sees_poison = bool((flat == flat[:, :1]).all(1).any())
        features: Tensor = self.layers(images)
        return features


class Breaking(SoftmaxLoss):
    """The softmax loss, times a factor where there is poison."""

    factor = 1.0

    def forward(self, image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None) -> LossOutput:
        output = super().forward(image, text, logit_scale, logit_bias)
        return output._replace(loss=output.loss * (self.factor if Tower.sees_poison else 1.0))


class NanLoss(Breaking):
    factor = math.nan


class HugeLoss(Breaking):
    factor = 1e4
