"""The durations of a run in samples."""

import pytest

from clip_lightning.config.lengths import Lengths, resolve_lengths, total_samples
from clip_lightning.errors import UserError
from tests.support.small_run import GLOBAL_BATCH, small_config


def test_every_duration_is_a_whole_number_of_steps() -> None:
    config = small_config(duration="2 epochs", on_divergence="rollback", rollback_margin="3 steps")
    config.eval.every, config.cluster.checkpoint_every, config.cluster.keep_every = "25%", "5 steps", "50%"
    config.cluster.log_every = "1 samples"
    lengths = resolve_lengths(config, epoch_samples=490)
    total = 41 * GLOBAL_BATCH
    assert lengths == Lengths(
        total=total,
        epoch_samples=490,
        checkpoint_every=5 * GLOBAL_BATCH,
        keep_every=21 * GLOBAL_BATCH,
        eval_every=10 * GLOBAL_BATCH,
        log_every=GLOBAL_BATCH,
        rollback_margin=3 * GLOBAL_BATCH,
    )


def test_a_length_in_epochs_needs_their_size_and_every_run_has_a_step() -> None:
    config = small_config(duration="2 epochs")
    with pytest.raises(UserError):
        total_samples(config, None)
    config.compute.duration = "0 steps"
    with pytest.raises(UserError):
        total_samples(config, 490)
