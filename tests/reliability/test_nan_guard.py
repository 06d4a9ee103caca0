"""Steps out of order are counted in a row, and decide whenever they are read."""

import math

import pytest
import torch

from clip_lightning.reliability.nan_guard import DELAY, DivergenceError, NanGuard
from clip_lightning.reliability.spike import SpikeDetector


def feed(guard: NanGuard, losses: list[float], first: int = 0, flush_every: int = 100) -> None:
    """One step per loss, of 10 samples each; a loss that is no number is a skipped step."""
    for step, loss in enumerate(losses, first):
        numbers = torch.tensor([float(math.isnan(loss)), loss, 1.0])
        guard.record(numbers, step * 10, torch.arange(step * 10, step * 10 + 10))
        if step % flush_every == flush_every - 1:
            guard.flush()


def test_skipped_steps_are_counted_in_a_row() -> None:
    guard = NanGuard(limit=3)
    feed(guard, [math.nan, math.nan, 1, math.nan, math.nan, 1])
    guard.flush()
    assert (guard.num_skipped, guard.in_a_row, guard.row) == (4, 0, [])


@pytest.mark.parametrize("flush_every", [1, 2, 100])
def test_the_row_that_decided_is_the_same_whenever_it_is_read(flush_every: int) -> None:
    guard = NanGuard(limit=3)
    losses = [1, math.nan, 1, math.nan, math.nan, math.nan, math.nan, 1, 1, 1, 1]
    with pytest.raises(DivergenceError, match=r"nonfinite_limit=3.*from the step after 30 .* after 50") as info:
        feed(guard, losses, flush_every=flush_every)
    assert [step.samples_seen for step in info.value.steps] == [30, 40, 50]
    ids = info.value.steps[0].sample_ids
    assert ids is not None
    assert ids.tolist() == list(range(30, 40))


def test_a_step_is_read_some_steps_later() -> None:
    guard = NanGuard(limit=1)
    feed(guard, [math.nan] + [1.0] * (DELAY - 1))
    with pytest.raises(DivergenceError):
        feed(guard, [1.0], first=DELAY)


def test_spikes_in_a_row_are_a_divergence_and_what_is_not_finite_between_them_does_not_end_the_row() -> None:
    guard = NanGuard(limit=3, spikes=SpikeDetector(threshold=10, window=8, limit=3))
    feed(guard, [1.0] * 8 + [9.0, 9.0, 1.0])
    guard.flush()
    assert not guard.is_in_doubt()
    feed(guard, [9.0, math.nan, 9.0], first=11)
    assert guard.is_in_doubt()
    feed(guard, [9.0], first=14)
    with pytest.raises(
        DivergenceError, match=r"compute\.spike_limit=3: 3 spikes in a row, the last a loss of 9"
    ) as info:
        guard.flush()
    assert [step.is_skipped for step in info.value.steps] == [False, True, False, False]


def test_a_restored_guard_continues_within_a_row() -> None:
    first, second = NanGuard(limit=3), NanGuard(limit=3)
    feed(first, [1, math.nan, math.nan])
    first.flush()
    second.load_state_dict(first.state_dict())
    feed(second, [math.nan], first=3)
    with pytest.raises(DivergenceError) as info:
        second.flush()
    assert [step.samples_seen for step in info.value.steps] == [10, 20, 30]
    assert [step.sample_ids is None for step in info.value.steps] == [True, True, False]
