"""The acceptance table: published answers, from their own data where it is present."""

import numpy as np
import pytest

from clip_lightning.scaling.allocation import power_through, vertices
from clip_lightning.scaling.fit import Settings, fit
from clip_lightning.scaling.fit_command import test as held_out
from clip_lightning.scaling.table import points_of
from tests.scaling.studies import grid, points, reference

SUBSET = ["dataset", "hparams", "warmup", "decay", "param_count", "split"]


@pytest.mark.parametrize(("width", "intercept"), [(2, -0.556779), (4, -0.561045), (8, -0.568151), (16, -0.578092)])
def test_isoflop_parabolas_have_their_known_bias(width: float, intercept: float) -> None:
    """2603.22339, Tables 1 to 3; the true intercept is -0.555357."""
    found = vertices(points(grid(np.geomspace(1e17, 1e21, 5), width, 15)), 6.0, "d")
    budgets, positions = np.array([one.budget for one in found]), np.array([one.position for one in found])
    exponent, found_intercept = power_through(budgets, positions)
    assert exponent == pytest.approx(0.34 / 0.62, abs=1e-6)
    assert found_intercept == pytest.approx(intercept, abs=1e-5)


def test_symmetric_surface_has_no_bias() -> None:
    answer = {"E": 1.69, "A": 400.0, "B": 400.0, "alpha": 0.31, "beta": 0.31}
    table = grid(np.geomspace(1e17, 1e21, 5), 16, 15, answer=answer)
    found = vertices(points(table), 6.0, "d")
    exponent, intercept = power_through(
        np.array([one.budget for one in found]), np.array([one.position for one in found])
    )
    assert exponent == pytest.approx(0.5, abs=1e-9)
    assert intercept == pytest.approx(-0.5 * np.log10(6), abs=1e-9)


def test_fifteen_exponents_of_porian() -> None:
    pairs, published = reference("porian2024_optimal_pairs.csv"), reference("porian2024_published_fits.csv")
    pairs = pairs[np.isfinite(pairs.n_star) & (pairs.n_star_std > 0)]
    num = 0
    for names, rows in pairs.groupby(SUBSET):
        exponent, _ = power_through(rows.flops.to_numpy(), np.log10(rows.n_star.to_numpy()), rows.n_star_std.to_numpy())
        expected = published[(published[SUBSET] == list(names)).all(axis=1)].n_exponent.iloc[0]
        assert exponent == pytest.approx(expected, abs=1e-3), names
        num += 1
    assert num == 15


@pytest.mark.parametrize(
    ("dataset", "answer"),
    [
        ("c4_original", {"E": 1.508, "a": 141.3, "b": 189.5, "eta": 0.1212}),
        ("rpj", {"E": 1.837, "a": 212.3, "b": 366.7, "eta": 0.1364}),
        ("rw_original", {"E": 1.734, "a": 157.1, "b": 246.2, "eta": 0.1272}),
    ],
)
def test_over_training_laws_of_gadre(dataset: str, answer: dict[str, float]) -> None:
    """Five small runs predict 1.4B parameters at 640 tokens per parameter, and 7B."""
    table = reference("gadre2024_models.csv")
    table = table[table.dataset == dataset]
    table = table.assign(compute=6.0 * table.params * table.tokens)
    large = table.model.str.startswith("open_lm")
    small = (table.chinchilla_mult.eq(1) & ~large) | (
        table.model.str.startswith("d=96_") & table.chinchilla_mult.eq(16)
    )
    columns = {"n": "params", "d": "tokens", "x": "compute", "y": "loss_c4_val"}
    law = fit(points_of(table[small], columns, "overtraining"), "overtraining",
              Settings(draws=0, with_profiles=False, residual="absolute"))  # fmt: skip
    assert law.data["num_points"] == 5
    assert law.parameters == pytest.approx(answer, rel=1e-3)
    if dataset == "rpj":
        rows, _ = held_out(law, points_of(table[large], columns, "overtraining"))
        errors = {row["row"]: 100 * abs(row["value"] / row["observed"] - 1) for row in rows}
        assert errors[68] == pytest.approx(0.7103, abs=1e-3)  # open_lm_1b, 640 tokens per parameter
        assert errors[69] == pytest.approx(0.7320, abs=1e-3)  # open_lm_7b, 20


def test_public_clip_runs_split_their_budget_as_the_study_of_them_found() -> None:
    """Surface on ImageNet cells: d* ~ C^0.48 to 0.52, by the selection of cells."""
    table = reference("slampai_clip_schedules.csv")
    table = table[(table.family == "clip") & (table["eval"] == "imagenet1k")]
    table = table.assign(acc1=table.cosine.fillna(table["const-cooldown"]), flops=3e9 * table.gflops_per_sample)
    table = table[table.acc1 > 0.1]
    found = points_of(table, {"n": "flops", "d": "samples_seen", "y": "acc1"}, "surface")
    p = fit(found, "surface", Settings(draws=0, with_profiles=False, starts=36)).parameters
    assert p["alpha"] / (p["alpha"] + p["beta"]) == pytest.approx(0.50, abs=0.04)
