"""A spike is far above the steps before it: noise on a falling curve is none, a jump is one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_lightning.reliability.spike import SpikeDetector

WINDOW, THRESHOLD = 32, 12.0


def curve(seed: int, rate: float, noise: float, steps: int = 300) -> list[tuple[float, float]]:
    """A loss that falls exponentially, and a gradient norm that does not; noise is a share of either's value."""
    draw = np.random.default_rng(seed)
    smooth = 0.5 + 4 * np.exp(-rate * np.arange(steps))
    shaken = 1 + noise * draw.uniform(-1, 1, (2, steps))
    return list(zip((smooth * shaken[0]).tolist(), (0.8 * shaken[1]).tolist(), strict=True))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rate=st.floats(0, 0.5), noise=st.floats(0, 0.5))
def test_a_noisy_falling_curve_never_has_a_spike(seed: int, rate: float, noise: float) -> None:
    detector = SpikeDetector(THRESHOLD, WINDOW, 1)
    assert not any(detector.is_spike(*step) for step in curve(seed, rate, noise))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    noise=st.floats(0, 0.2),
    place=st.integers(WINDOW, 250),
    which=st.integers(0, 1),
    factor=st.floats(10, 1e30),
)
def test_a_jump_of_either_is_a_spike_as_long_as_it_lasts(
    seed: int, noise: float, place: int, which: int, factor: float
) -> None:
    detector, steps = SpikeDetector(THRESHOLD, WINDOW, 1), curve(seed, 0.01, noise)
    high = [list(step) for step in steps]
    for k in range(place, place + 2 * WINDOW):
        high[k % 300][which] *= factor
    judged = [detector.is_spike(*step) for step in high[: min(300, place + 2 * WINDOW)]]
    assert not any(judged[:place])
    assert all(judged[place:])


def test_no_step_is_a_spike_before_the_window_is_full() -> None:
    detector = SpikeDetector(THRESHOLD, WINDOW, 1)
    assert not any(detector.is_spike(10.0 ** (k % 7), 1.0) for k in range(WINDOW))


def test_a_constant_loss_may_rise_by_a_little() -> None:
    detector = SpikeDetector(THRESHOLD, WINDOW, 1)
    assert not any(detector.is_spike(2.0, 0.5) for _ in range(WINDOW))
    assert not detector.is_spike(2.02, 0.5)
    assert detector.is_spike(2.03, 0.5)


def test_a_restored_detector_decides_as_the_saved_one() -> None:
    first, second = (SpikeDetector(THRESHOLD, WINDOW, 1) for _ in range(2))
    for step in curve(0, 0.01, 0.1, 50):
        first.is_spike(*step)
    second.load_state_dict(first.state_dict())
    for loss in (1.0, 3.0, 4.0, 5.0, 7.0, 20.0, math.pi):
        assert first.is_spike(loss, 0.8) == second.is_spike(loss, 0.8)


def test_another_phase_is_compared_with_itself() -> None:
    detector = SpikeDetector(THRESHOLD, WINDOW, 1)
    assert not any(detector.is_spike(1.0, 1.0, 0) for _ in range(WINDOW))
    assert not any(detector.is_spike(5.0, 3.0, 1600) for _ in range(WINDOW))
    assert detector.is_spike(9.0, 3.0, 1600)
