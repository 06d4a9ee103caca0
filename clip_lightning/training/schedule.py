"""The learning rate as a pure function of the samples seen: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass

from clip_lightning.config.duration import to_samples
from clip_lightning.config.schema import ComputeConfig


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up, then one of three schedules.

    Attributes:
        kind: cosine (from peak to final), constant, constant_cooldown (constant, then down to final: WSD).
        peak, final: learning rates.
        global_batch, total, warmup, cooldown: samples.
        power: of the cool-down; 1 is linear.
    """

    kind: str
    peak: float
    final: float
    global_batch: int
    total: int
    warmup: int
    cooldown: int
    power: float

    def learning_rate(self, samples_seen: int) -> float:
        """The learning rate of the step that begins after `samples_seen` samples; the last step does not reach `final`.

        The warm-up counts the step's own samples, so that no step is lost at a rate of 0. At equal batches this is
        open_clip's schedule of the same kind (open_clip_train.scheduler), step by step.
        """
        if samples_seen < self.warmup:
            return self.peak * (samples_seen + self.global_batch) / self.warmup
        if self.kind == "cosine":
            done = (samples_seen - self.warmup) / max(self.global_batch, self.total - self.warmup)
            return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * done))
        cooldown_begins = self.total - self.cooldown
        if self.kind == "constant" or samples_seen < cooldown_begins:
            return self.peak
        left = 1 - (samples_seen - cooldown_begins) / self.cooldown
        return self.final + (self.peak - self.final) * left**self.power


def build_schedule(compute: ComputeConfig, *, total_samples: int, epoch_samples: int) -> Schedule:
    """The schedule of a run."""
    assert compute.learning_rate is not None, "filled from the recipes when the config is resolved"
    warmup, cooldown = (
        to_samples(
            text, global_batch=compute.global_batch, epoch_samples=epoch_samples or None, total_samples=total_samples
        )
        for text in (compute.warmup, compute.cooldown)
    )
    return Schedule(
        kind=compute.schedule,
        peak=compute.learning_rate,
        final=compute.final_learning_rate,
        global_batch=compute.global_batch,
        total=total_samples,
        warmup=warmup,
        cooldown=cooldown,
        power=compute.cooldown_power,
    )
