"""Allocations: the surface's is exact, edge minima are refused, the frontier is what no run beats."""

import numpy as np
import pytest

from clip_lightning.errors import UserError
from clip_lightning.scaling.allocation import (
    frontier,
    isoflop_allocation,
    outliers,
    parabola_bias,
    pareto_allocation,
    surface_allocation,
    vertex,
)
from tests.scaling.studies import CHINCHILLA, best_n, grid, points


def test_surface_allocation_is_the_analytic_optimum() -> None:
    parameters = {name: np.array([value]) for name, value in CHINCHILLA.items()}
    found = surface_allocation(parameters, {name: np.zeros(0) for name in parameters}, 6.0)
    assert found.exponent == pytest.approx(0.28 / 0.62)
    assert found.best_n(1e24) == pytest.approx(best_n(1e24), rel=1e-9)


@pytest.mark.parametrize(("keep", "end"), [(slice(0, 4), "largest"), (slice(9, 13), "smallest")])
def test_minimum_at_the_edge_of_the_ladder_is_refused(keep: slice, end: str) -> None:
    table = grid(np.array([1e20]), 16, 13).sort_values("n").iloc[keep]
    found = vertex(np.log10(table.n.to_numpy()), table.loss.to_numpy(), 1e20)
    assert found.reason == f"edge minimum: the {end} value is the best, so the optimum may lie outside the ladder"


def test_study_of_edge_minima_has_no_exponent() -> None:
    table = grid(np.geomspace(1e18, 1e20, 3), 16, 13)
    cut = table[table.groupby("flops").n.rank() <= 4]
    with pytest.raises(UserError, match="0 of 3 budgets have a minimum inside the ladder"):
        isoflop_allocation(points(cut), 6.0)


def test_akima_and_parabola_agree_on_a_fine_grid() -> None:
    found = points(grid(np.geomspace(1e18, 1e20, 3), 4, 13))
    exponents = [isoflop_allocation(found, 6.0, name).exponent for name in ("parabola", "akima")]
    assert exponents[0] == pytest.approx(0.28 / 0.62, abs=1e-3)
    assert exponents[1] == pytest.approx(0.28 / 0.62, abs=5e-3)


def test_bias_of_the_parabolas_is_reported_on_the_design_itself() -> None:
    bias = parabola_bias(points(grid(np.geomspace(1e17, 1e21, 5), 16, 15)), CHINCHILLA, 6.0)
    assert bias is not None
    assert bias[0] == pytest.approx(0, abs=1e-6)
    assert bias[2] < 0  # too little data, as 2603.22339 found


def test_frontier_is_what_no_run_beats() -> None:
    budget, y = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([5.0, 6.0, 4.0, 4.5, 3.0])
    assert frontier(budget, y).tolist() == [0, 2, 4]


def test_pareto_allocation_of_a_grid_on_the_optimum() -> None:
    table = grid(np.geomspace(1e17, 1e21, 9), 16, 9)
    found = pareto_allocation(points(table), 6.0)
    assert found.exponent == pytest.approx(0.28 / 0.62, abs=0.02)


def test_outlier_is_named_with_its_row() -> None:
    table = grid(np.geomspace(1e18, 1e20, 3), 6, 5, noise=0.002)
    residuals = np.random.default_rng(0).standard_normal(len(table)) * 0.002
    residuals[6] = 0.05
    (sentence,) = outliers(points(table), residuals)
    assert sentence.startswith("row 7: ")


def test_runs_of_one_budget_are_one_step_of_the_frontier() -> None:
    """Whole steps make budgets of one isoFLOP curve differ by up to 2 %, in any order of the sizes."""
    budget = np.array([1e11, 0.99e11, 1.005e11, 2.5e11, 2.52e11, 6.3e11])
    y = np.array([5.6, 6.4, 5.3, 5.5, 5.1, 5.2])
    assert frontier(budget, y).tolist() == [2, 4]
    dense = np.geomspace(1, 1000, 500)  # a learning curve keeps a point for every 2 %
    assert len(frontier(dense, 1 / dense)) > 150
