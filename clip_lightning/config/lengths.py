"""The durations of a config in samples, a pure function of the config and the number of training pairs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from clip_lightning.config import duration
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError
from clip_lightning.records import Record

_LONG_WARMUP = 30  # steps


@dataclass(frozen=True)
class Lengths:
    """The durations of a run in samples, each a whole number of steps; an interval of 0 means never.

    Attributes:
        total: pairs that the whole run trains on.
        epoch_samples: training pairs of one epoch; this one need not be a whole number of steps.
        rollback_margin: 0 in a run that does not roll back.
    """

    total: int
    epoch_samples: int
    checkpoint_every: int = 0
    keep_every: int = 0
    eval_every: int = 0
    log_every: int = 0
    rollback_margin: int = 0


def total_samples(config: Config, epoch_samples: int | None) -> int:
    """Pairs that the whole run trains on.

    Args:
        epoch_samples: training pairs of one epoch; None where they are not known yet.

    Raises:
        UserError: the duration is in epochs and their size is not known, or it is shorter than one step.
    """
    batch = config.compute.global_batch
    total = duration.to_samples(
        config.compute.duration, global_batch=batch, epoch_samples=epoch_samples, total_samples=None
    )
    if not total:
        raise UserError(f"compute.duration={config.compute.duration} must be at least one step of {batch} samples")
    return total


def schedule_problems(config: Config, total: int, epoch_samples: int | None) -> Iterator[str]:
    """Whether warm-up and cool-down fit into a run of `total` samples."""
    compute = config.compute
    warmup, cooldown = (
        duration.to_samples(text, global_batch=compute.global_batch, epoch_samples=epoch_samples, total_samples=total)
        for text in (compute.warmup, compute.cooldown)
    )
    if warmup + cooldown > total:
        what = f"compute.warmup={compute.warmup}" + (f" and compute.cooldown={compute.cooldown}" if cooldown else "")
        yield (
            f"{what} take {warmup + cooldown:,} samples and the whole run has {total:,} "
            f"(compute.duration={compute.duration}); write compute.warmup=5%"
        )


def batch_warning(global_batch: int, num_pairs: int) -> list[str]:
    """A sentence where a batch holds pairs twice, which are then each other's negatives."""
    if global_batch <= num_pairs:
        return []
    return [
        f"warning: compute.global_batch={global_batch:,} is larger than the {num_pairs:,} training pairs, so a batch "
        f"holds pairs twice, as negatives of each other; write compute.global_batch={max(1, num_pairs // 2):,}"
    ]


def flat_loss_warning(loss: float | None, config: Config, lengths: Lengths) -> list[str]:
    """A sentence where a run of several steps ends with the softmax loss of chance, the logarithm of the batch.

    A likely cause is a short warm-up, as 5 % of a short run is: at a learning rate of 2e-3 the tiny model has one
    feature for all images after 3 steps of warm-up (its gradient vanishes), and learns after 30.
    """
    batch, compute = config.compute.global_batch, config.compute
    if loss is None or config.loss.name != "softmax" or batch < 2 or loss < 0.98 * math.log(batch):
        return []
    num_steps = lengths.total // batch
    if num_steps < 2:  # the loss of a single step, as of debug=fast_dev_run, is that of the initial weights
        return []
    warmup = duration.to_samples(
        compute.warmup, global_batch=batch, epoch_samples=lengths.epoch_samples, total_samples=lengths.total
    )
    return [
        f"warning: the loss ends at {loss:.3f}, that of chance (ln {batch} = {math.log(batch):.3f}): nothing was "
        f"learned; the warm-up had {warmup // batch:,} of {num_steps:,} steps: write a longer one (compute.warmup="
        f"'{min(_LONG_WARMUP, max(1, num_steps // 2))} steps') or a lower compute.learning_rate than "
        f"{compute.learning_rate:g}, or train longer"
    ]


def overfit_warning(validation: Record | None, lengths: Lengths) -> list[str]:
    """A sentence where a run of several epochs ends with a validation loss whose interval is above that of chance."""
    epochs = lengths.total / lengths.epoch_samples
    if validation is None or validation.low is None or validation.chance is None:
        return []
    if epochs < 2 or validation.low <= validation.chance:
        return []
    return [
        f"warning: {validation.what} ends at {validation.value:.3f}, above that of chance ({validation.chance:.3f}): "
        f"after {epochs:,.0f} epochs of {lengths.epoch_samples:,} pairs the model has overfitted; train fewer epochs "
        "(compute.duration='10 epochs'), or on more pairs"
    ]


def resolve_lengths(config: Config, epoch_samples: int) -> Lengths:
    """All durations of a run over data with so many training pairs.

    Raises:
        UserError: a duration cannot be resolved, or warm-up and cool-down are longer than the run.
    """
    batch, total = config.compute.global_batch, total_samples(config, epoch_samples)
    if problems := list(schedule_problems(config, total, epoch_samples)):
        raise UserError(*problems)

    def samples(text: str) -> int:
        return duration.to_samples(text, global_batch=batch, epoch_samples=epoch_samples, total_samples=total)

    return Lengths(
        total=total,
        epoch_samples=epoch_samples,
        checkpoint_every=samples(config.cluster.checkpoint_every),
        keep_every=samples(config.cluster.keep_every) if config.cluster.keep_every else 0,
        eval_every=samples(config.eval.every),
        log_every=max(batch, samples(config.cluster.log_every)),
        rollback_margin=samples(config.compute.rollback_margin) if config.compute.on_divergence == "rollback" else 0,
    )
