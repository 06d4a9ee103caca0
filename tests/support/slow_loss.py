"""A loss that takes its time, for runs that must still be training when something happens to them.

SECONDS_PER_STEP says how long in a first start (a requeued job hurries); in the folder PROCESSES every process that
trains leaves a file named by its id.
"""

import os
import time
from pathlib import Path

from torch import Tensor

from clip_lightning.loss import LossOutput, SoftmaxLoss


class SlowLoss(SoftmaxLoss):
    def forward(self, image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None) -> LossOutput:
        if "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(float(os.environ.get("SECONDS_PER_STEP", "0")))
        if folder := os.environ.get("PROCESSES"):
            (Path(folder) / str(os.getpid())).touch()
        return super().forward(image, text, logit_scale, logit_bias)
