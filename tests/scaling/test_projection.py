"""Forms and variable projection: derivatives, recovery of known answers, bounds, units."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_lightning.scaling.fit import Settings, fit
from clip_lightning.scaling.forms import FORMS, Form, normalise
from clip_lightning.scaling.huber import fit_huber
from clip_lightning.scaling.projection import Held, refine, search, solve_linear
from clip_lightning.scaling.table import points_of
from tests.scaling.studies import CHINCHILLA, grid, points, surface

QUICK = Settings(draws=0, with_profiles=False, starts=36)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_derivatives_of_features_equal_finite_differences(form: Form) -> None:
    z = np.exp(np.random.default_rng(0).standard_normal((7, len(form.inputs))))
    theta = 0.7 * form.bounds.mean(axis=1)[None] * 0.3 + 0.05
    _, slopes = form.features(z, theta)
    for p in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, p] = 1e-6
        numeric = (form.features(z, theta + step)[0] - form.features(z, theta - step)[0]) / 2e-6
        np.testing.assert_allclose(slopes[..., p], numeric, atol=1e-6)


def test_five_parameters_of_chinchilla_without_noise() -> None:
    table = grid(np.geomspace(1e18, 1e21, 4), 8, 6)
    found = fit(points(table), "surface", QUICK).parameters
    assert found == pytest.approx(CHINCHILLA, rel=1e-6)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    floor=st.floats(0.2, 3), a=st.floats(5, 1000), b=st.floats(5, 1000), alpha=st.floats(0.1, 0.8),
    beta=st.floats(0.1, 0.8),
)  # fmt: skip
def test_any_surface_is_recovered_without_noise(floor: float, a: float, b: float, alpha: float, beta: float) -> None:
    answer = {"E": floor, "A": a, "B": b, "alpha": alpha, "beta": beta}
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(1, 4, 40), 10 ** rng.uniform(1, 4, 40)
    form = FORMS["surface"]
    z, scales = normalise(form, np.stack([n, d], axis=1))
    y = surface(n, d, answer)
    solution, _ = search(form, z, y, 1 / y, 36)
    found = form.to_raw(solution.coefficients, solution.theta, scales)
    assert {name: float(value[0]) for name, value in found.items()} == pytest.approx(answer, rel=1e-5)


@pytest.mark.ci
@pytest.mark.parametrize("estimator", ["variable_projection", "huber"])
def test_result_does_not_depend_on_units(estimator: str) -> None:
    table = grid(np.geomspace(1e18, 1e20, 3), 6, 4, noise=0.01)
    quick = Settings(draws=100 if estimator == "variable_projection" else 0, starts=9, estimator=estimator)
    first = fit(points(table), "surface", quick)
    other = table.assign(n=table.n / 1e9, d=table.d / 1e6)
    second = fit(points(other), "surface", quick)
    for name in ("E", "alpha", "beta"):
        assert second.parameters[name] == pytest.approx(first.parameters[name], rel=1e-6)
    assert second.verdicts == first.verdicts
    here = first.predict({"n": 1e9, "d": 1e10})[0].value
    assert second.predict({"n": 1.0, "d": 1e4})[0].value == pytest.approx(here, rel=1e-8)


@pytest.mark.slow
def test_result_does_not_depend_on_the_random_starts() -> None:
    study = points(grid(np.geomspace(1e18, 1e20, 3), 6, 4, noise=0.01))
    quick: dict[str, Any] = {"draws": 0, "with_profiles": False, "starts": 16, "estimator": "huber"}
    found = [fit(study, "surface", Settings(seed=seed, **quick)) for seed in (0, 1)]
    assert found[0].parameters == pytest.approx(found[1].parameters, rel=1e-4)


def test_floor_stays_between_zero_and_the_least_answer() -> None:
    form = FORMS["power_floor"]
    x = np.geomspace(1, 100, 6)
    z, _ = normalise(form, x[:, None])
    phi, _ = form.features(z, np.array([[0.5]]))
    falling = 2.0 - 1.5 * phi[0, :, 1] / phi[0, :, 1].max()  # rises with x: the best slope would be negative
    coefficients, _, _ = solve_linear(form, phi, falling[None], np.ones((1, 6)), Held())
    assert coefficients[0, 1] >= 0
    assert coefficients[0, 0] <= falling.min() + 1e-12
    steep = 5 * phi[0, :, 1] - 0.3  # the best floor would be negative
    coefficients, _, _ = solve_linear(form, phi, np.maximum(steep, 0.01)[None], np.ones((1, 6)), Held())
    assert coefficients[0, 0] == 0


def test_held_parameters_stay_as_they_are() -> None:
    form = FORMS["surface"]
    table = grid(np.geomspace(1e18, 1e20, 3), 6, 4, noise=0.01)
    z, _ = normalise(form, points(table).matrix(form))
    y = table.loss.to_numpy()[None]
    held = Held({0: np.array([1.5])}, {1: np.array([0.31])})
    found = refine(form, z, y, 1 / y, np.array([[0.3, 0.3]]), held)
    assert found.coefficients[0, 0] == 1.5
    assert found.theta[0, 1] == 0.31
    free = refine(form, z, y, 1 / y, np.array([[0.3, 0.3]]))
    assert free.sse[0] < found.sse[0]


def test_batch_of_fits_equals_single_fits() -> None:
    form = FORMS["surface"]
    table = grid(np.geomspace(1e18, 1e20, 3), 6, 4)
    z, _ = normalise(form, points(table).matrix(form))
    rng = np.random.default_rng(0)
    y = table.loss.to_numpy() * np.exp(0.01 * rng.standard_normal((5, len(table))))
    start = np.tile([[0.3, 0.3]], (5, 1))
    together = refine(form, z, y, 1 / y, start)
    for k in range(5):
        alone = refine(form, z, y[k : k + 1], 1 / y[k : k + 1], start[:1])
        np.testing.assert_allclose(together.theta[k], alone.theta[0], rtol=1e-6)


def test_share_of_huber_starts_at_the_optimum_is_reported() -> None:
    table = grid(np.geomspace(1e18, 1e20, 3), 6, 4, noise=0.005)
    form = FORMS["surface"]
    z, _ = normalise(form, points(table).matrix(form))
    found = fit_huber(form, z, table.loss.to_numpy(), num_starts=9, delta=1e-2)
    assert 0 < found.share <= 1
    assert found.solution.theta[0] == pytest.approx([0.34, 0.28], rel=0.2)


@pytest.mark.slow
def test_outlier_moves_huber_less_than_least_squares() -> None:
    table = grid(np.geomspace(1e18, 1e20, 3), 6, 5, noise=0.002)
    table.loc[7, "loss"] *= 1.3
    errors = {}
    for estimator in ("variable_projection", "huber"):
        law = fit(points(table), "surface", Settings(draws=0, with_profiles=False, starts=9, estimator=estimator))
        errors[estimator] = abs(
            law.predict({"n": 1e9, "d": 1e10})[0].value / float(surface(np.array(1e9), np.array(1e10))) - 1
        )
    assert errors["huber"] < errors["variable_projection"]


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("power", lambda x: 3 * x**-0.2),
        ("power_floor", lambda x: 0.4 + 3 * x**-0.2),
        ("shifted_floor", lambda x: 0.4 + 3 * (x + 40) ** -0.3),
    ],
)
def test_forms_of_compute_predict_what_they_were_drawn_from(form: str, answer: Callable[[Any], Any]) -> None:
    x = np.geomspace(1, 1e4, 15)
    table = grid(np.array([1e18]), 2, 15).assign(flops=x, loss=answer(x))
    law = fit(points_of(table, {"x": "flops", "y": "loss"}, form), form, QUICK)
    assert law.predict({"x": 5e4})[0].value == pytest.approx(answer(5e4), rel=1e-3)


def test_bounded_form_with_repeated_data_predicts_what_it_was_drawn_from() -> None:
    rng = np.random.default_rng(1)
    n, t, u = (10 ** rng.uniform(low, low + 3, 60) for low in (1, 2, 2))
    h = 4 * n**-0.4 + 6 * t**-0.5 + 0.5 * n**0.1 * u**-0.4
    table = grid(np.array([1e18]), 2, 60).assign(n=n, d=t, u=u, loss=1 + 5.93 * h / (1 + h))
    found = points_of(table, {"n": "n", "d": "d", "u": "u", "y": "loss"}, "bounded")
    law = fit(found, "bounded", Settings(draws=0, with_profiles=False, starts=40, chance=6.93))
    assert law.stages[0].form == "bounded_unique"
    place = {"n": 300.0, "d": 8e4, "u": 3e4}
    h = 4 * 300**-0.4 + 6 * 8e4**-0.5 + 0.5 * 300**0.1 * 3e4**-0.4
    assert law.predict(place)[0].value == pytest.approx(1 + 5.93 * h / (1 + h), rel=5e-3)
    assert law.parameters["L0"] == pytest.approx(6.93)


def test_two_steps_predict_accuracy_through_the_loss() -> None:
    x = np.geomspace(1, 1e4, 20)
    loss = 1 + 4 * x**-0.3

    def accuracy(of: np.ndarray) -> np.ndarray:
        return 0.01 + 0.8 / (1 + np.exp(2.0 * (of - 2.0)))

    table = grid(np.array([1e18]), 2, 20).assign(flops=x, val_loss_1024=loss, acc1=accuracy(loss))
    found = points_of(table, {"x": "flops", "loss": "val_loss_1024", "y": "acc1"}, "two_step")
    law = fit(found, "two_step", QUICK)
    expected = accuracy(np.array(1 + 4 * 5e4**-0.3))
    assert law.predict({"x": 5e4})[0].value == pytest.approx(float(expected), rel=1e-3)
    assert law.parameters["loss.alpha"] == pytest.approx(0.3, rel=1e-4)
