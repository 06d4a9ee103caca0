"""A loss after whose step FULL_AT_STEP the disk takes no more large files."""

import os
import resource

from torch import Tensor

from clip_lightning.loss import LossOutput, SoftmaxLoss


class FillingDisk(SoftmaxLoss):
    num_steps = 0

    def forward(self, image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None) -> LossOutput:
        self.num_steps += 1
        if str(self.num_steps) == os.environ.get("FULL_AT_STEP"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        return super().forward(image, text, logit_scale, logit_bias)
