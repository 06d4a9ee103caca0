"""The durations of a run in samples."""

import math
from dataclasses import replace

import pytest

from clip_lightning.config import compose
from clip_lightning.config.lengths import (
    Lengths,
    batch_warning,
    flat_loss_warning,
    overfit_warning,
    resolve_lengths,
    total_samples,
)
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError
from clip_lightning.records import Record
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


def test_a_batch_larger_than_the_data_is_reported() -> None:
    assert batch_warning(128, 128) == []
    (warning,) = batch_warning(128, 90)
    assert "compute.global_batch=45" in warning


def test_a_loss_of_chance_at_the_end_is_reported() -> None:
    config: Config = compose.load("train", [], check=False)
    chance = math.log(config.compute.global_batch)
    lengths = Lengths(60 * config.compute.global_batch, 900)
    assert flat_loss_warning(0.9 * chance, config, lengths) == flat_loss_warning(None, config, lengths) == []
    assert flat_loss_warning(chance, config, Lengths(config.compute.global_batch, 900)) == []  # debug=fast_dev_run
    (warning,) = flat_loss_warning(chance, config, lengths)
    assert "had 3 of 60 steps: write a longer one (compute.warmup='30 steps')" in warning


def test_a_validation_loss_above_chance_after_many_epochs_is_reported() -> None:
    overfitted = Record(what="val_loss_100", value=7.15, low=6.45, high=7.86, n=100, chance=math.log(100))
    (warning,) = overfit_warning(overfitted, Lengths(256_000, 900))
    assert "val_loss_100 ends at 7.150, above that of chance (4.605): after 284 epochs of 900 pairs" in warning
    assert overfit_warning(overfitted, Lengths(1000, 900)) == []
    assert overfit_warning(replace(overfitted, low=4.5), Lengths(256_000, 900)) == []
    assert overfit_warning(None, Lengths(256_000, 900)) == []


def test_warm_up_is_checked_against_the_counted_pairs() -> None:
    words = ["compute.duration=5 epochs", "compute.warmup=2000 steps", "data.num_samples=null"]
    config: Config = compose.load("train", words, check=False)
    batch = config.compute.global_batch
    assert resolve_lengths(config, 1000 * batch).total == 5000 * batch
    with pytest.raises(UserError, match=r"compute\.warmup=2000 steps take"):
        resolve_lengths(config, 10 * batch)
