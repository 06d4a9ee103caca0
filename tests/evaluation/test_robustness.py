"""The logit fit over standard models, its bootstrap, and effective robustness."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from clip_lightning.errors import UserError
from clip_lightning.evaluation.robustness import effective_robustness, fit_logits, gap_closed, resample_lines


def on_a_line(slope: float = 0.8, intercept: float = -1.5, num_models: int = 12) -> tuple[np.ndarray, np.ndarray]:
    accuracy = np.linspace(0.6, 0.95, num_models)
    return accuracy, expit(intercept + slope * logit(accuracy))


@given(st.floats(0.2, 2), st.floats(-3, 1))
def test_the_fit_recovers_a_line_and_its_band_is_that_line(slope: float, intercept: float) -> None:
    accuracy, shifted = on_a_line(slope, intercept)
    fit = fit_logits(accuracy, shifted, num_resamples=50)
    assert (fit.slope, fit.intercept, fit.r2) == pytest.approx((slope, intercept, 1), abs=1e-8)
    low, high = fit.band(accuracy)
    assert low == pytest.approx(shifted, abs=1e-6)
    assert high == pytest.approx(shifted, abs=1e-6)
    assert effective_robustness(accuracy, shifted, fit) == pytest.approx(np.zeros(12), abs=1e-8)


def test_effective_robustness_is_accuracy_above_the_fit() -> None:
    accuracy, shifted = on_a_line()
    fit = fit_logits(accuracy, shifted)
    assert effective_robustness(0.9, expit(-1.5 + 0.8 * logit(0.9)) + 0.1, fit) == pytest.approx(0.1)
    assert gap_closed(0.9, 0.9, fit) == pytest.approx(1)
    assert gap_closed(accuracy, shifted, fit) == pytest.approx(np.zeros(12), abs=1e-6)
    assert np.isnan(gap_closed(1e-5, 1e-6, fit))  # the line predicts more than that: there is no gap


def test_the_interval_holds_the_slope_and_is_narrower_with_more_models() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for num_models in (10, 200):
        accuracy, _ = on_a_line(num_models=num_models)
        shifted = expit(-1.5 + 0.8 * logit(accuracy) + generator.normal(0, 0.1, num_models))
        low, high = fit_logits(accuracy, shifted).slope_interval
        assert low < 0.8 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_resamples_of_one_point_only_are_drawn_again() -> None:
    x, y = np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0, 3.0])  # most resamples have x = 0 alone or all but
    lines = resample_lines(x, y, 2000)
    assert lines.shape == (2000, 2)
    assert np.isfinite(lines).all()
    assert lines[:, 0].min() >= 1  # the smallest slope joins (0, 2) and (1, 3)


def test_few_or_equal_models_and_accuracies_without_a_logit_are_refused() -> None:
    with pytest.raises(UserError, match="at least 3 models, and there are 2; name more runs"):
        fit_logits(np.array([0.5, 0.6]), np.array([0.3, 0.4]))
    with pytest.raises(UserError, match="the same value there"):
        fit_logits(np.full(4, 0.5), np.linspace(0.1, 0.4, 4))
    with pytest.raises(UserError, match="above 0 and below 1"):
        fit_logits(np.array([0.5, 0.6, 0.7]), np.array([0.0, 0.2, 0.3]))
