"""Bootstrap, profiles, verdicts: they say what the data can determine, and their coverage is what they state."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from clip_lightning.errors import UserError
from clip_lightning.scaling.check import simulate
from clip_lightning.scaling.fit import Settings, fit
from clip_lightning.scaling.fit_command import test as run_coverage
from clip_lightning.scaling.table import Points, points_of
from tests.scaling.studies import CHINCHILLA, grid, points


def short_power_law(noise: float, floor: float = 0.5) -> Points:
    """One decade of budgets, too short for a floor."""
    x = np.geomspace(1, 10, 12)
    y = (floor + 2 * x**-0.2) * np.exp(noise * np.random.default_rng(0).standard_normal(12))
    table = pd.DataFrame({"flops": x, "loss": y}, index=pd.RangeIndex(1, 13))
    return points_of(table, {"x": "flops", "y": "loss"}, "power_floor")


@pytest.mark.slow
def test_floor_of_a_short_law_is_not_identified_and_a_long_one_is() -> None:
    short = fit(short_power_law(0.01), "power_floor", Settings(draws=100, starts=16))
    assert short.verdicts["E"].startswith("not identified")
    assert short.verdict.startswith("not identified: E")
    long = fit(points(grid(np.geomspace(1e17, 1e21, 5), 8, 5, noise=0.002)), "surface", Settings(draws=100, starts=16))
    assert long.verdict == "identified"


@pytest.mark.slow
def test_intervals_hold_the_truth_of_a_noisy_study() -> None:
    law = fit(points(grid(np.geomspace(1e17, 1e21, 5), 8, 5, noise=0.002)), "surface", Settings(draws=200, starts=16))
    for name, (low, high) in law.intervals.items():
        assert low < CHINCHILLA[name] < high, name


@pytest.mark.slow
def test_without_noise_intervals_are_points() -> None:
    law = fit(points(grid(np.geomspace(1e18, 1e20, 3), 6, 4)), "surface", Settings(draws=100, starts=16))
    for name, (low, high) in law.intervals.items():
        assert low == pytest.approx(CHINCHILLA[name], rel=1e-5)
        assert high == pytest.approx(CHINCHILLA[name], rel=1e-5)
    assert law.verdict == "identified"


def test_noise_of_a_new_run_follows_students_distribution() -> None:
    law = fit(short_power_law(0.01), "power_floor", Settings(draws=100, with_profiles=False, starts=16))
    (stage,) = law.stages
    assert stage.freedom == 12 - 3
    estimate = np.concatenate([stage.coefficients, stage.theta])
    certain = replace(law, stages=(replace(stage, draws=np.tile(estimate, (20_000, 1)), freedom=3),))
    (one,) = certain.predict({"x": np.array([10.0])})
    assert (one.low, one.high) == pytest.approx((one.value, one.value))
    assert one.run_low is not None
    assert one.run_high is not None
    half = float(stats.t.ppf(0.975, 3)) * stage.sigma * one.value
    assert (one.value - one.run_low, one.run_high - one.value) == pytest.approx((half, half), rel=0.1)


@pytest.mark.ci
def test_intervals_of_runs_at_the_next_budget_cover_what_they_state() -> None:
    """Ten runs in two budgets leave five degrees of freedom; with normal factors and noise 0.81 were inside."""
    shares = []
    for random in range(60):
        found = points(grid(np.geomspace(1e18, 1e20, 3), 6, 5, noise=0.005, random=random))
        budget = found.inputs["n"] * found.inputs["d"]
        largest = budget > 0.9 * budget.max()
        fitted = fit(found.take(~largest), "surface", Settings(draws=100, with_profiles=False, starts=9))
        shares.append(run_coverage(fitted, found.take(largest))[1]["coverage"])
    assert 0.85 <= np.mean(shares) <= 1.0


def test_floor_of_a_draw_is_not_below_zero() -> None:
    """Residuals that are as large as the answers give answers of draws below 0."""
    x = np.geomspace(1, 100, 8)
    y = x**-1.0 * np.exp(np.random.default_rng(0).standard_normal(8))
    table = pd.DataFrame({"flops": x, "loss": y}, index=pd.RangeIndex(1, 9))
    noisy = points_of(table, {"x": "flops", "y": "loss"}, "power_floor")
    law = fit(noisy, "power_floor", Settings(draws=200, with_profiles=False, starts=16))
    assert law.draws_of("E").min() >= 0


def test_as_many_points_as_parameters_identify_nothing() -> None:
    table = pd.DataFrame({"flops": [1.0, 3.0, 10.0], "loss": [3.0, 2.0, 1.5]}, index=pd.RangeIndex(1, 4))
    law = fit(points_of(table, {"x": "flops", "y": "loss"}, "power_floor"), "power_floor", Settings(draws=0, starts=16))
    assert law.verdicts["alpha"] == "not identified: no more points than parameters"


def test_runs_of_one_cluster_are_drawn_together() -> None:
    table = grid(np.geomspace(1e18, 1e20, 3), 6, 4, noise=0.003, seeds=2)
    table = table.assign(cell=np.repeat(np.arange(12), 2))
    clustered = points_of(table, {"n": "n", "d": "d", "y": "loss"}, "surface", cluster="cell")
    with pytest.raises(UserError, match="--resample runs"):
        fit(clustered, "surface", Settings(draws=100, with_profiles=False))
    law = fit(clustered, "surface", Settings(draws=100, with_profiles=False, resample="runs", starts=9))
    low, high = law.intervals["alpha"]
    assert low < law.parameters["alpha"] < high


def test_same_seed_gives_the_same_intervals() -> None:
    table = grid(np.geomspace(1e18, 1e20, 3), 6, 4, noise=0.003)
    quick = Settings(draws=100, with_profiles=False, starts=9)
    assert fit(points(table), "surface", quick).intervals == fit(points(table), "surface", quick).intervals


def coverage(num_studies: int, draws: int) -> float:
    """Of the prediction at 3 times the largest budget, 20 runs in 4 budgets, 0.5 % noise."""
    found = points(grid(np.geomspace(1e18, 1e20, 4), 6, 5))
    law = fit(found, "surface", Settings(draws=0, with_profiles=False, starts=16))
    return simulate(law, found, Settings(draws=draws, flops_per_nd=6.0), num_studies, noise=0.005).share


@pytest.mark.ci
def test_coverage_over_40_simulated_studies_is_near_95_percent() -> None:
    assert 0.85 <= coverage(40, 200) <= 1.0  # the binomial range of 40 studies of 95 %


@pytest.mark.ci
def test_coverage_over_200_simulated_studies_is_within_90_to_98_percent() -> None:
    assert 0.90 <= coverage(200, 200) <= 0.98
