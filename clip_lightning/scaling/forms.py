"""Forms of scaling laws: each is a sum of coefficients times features, and a feature depends on few exponents.

For fixed exponents the coefficients are a linear least-squares problem, which is what variable projection uses. Inputs
are divided by their geometric means (losses of `sigmoid` are standardised), so that no result depends on units.

Sources: surface, Hoffmann et al. 2022 (2203.15556), equation 2; overtraining, Gadre et al. 2024 (2403.08540), equation
4; shifted_floor, Cherti et al.'s follow-up (2506.04598); bounded, "Practical Scaling Laws" (2605.09189); two_step,
OLMo's ladder (2412.04403), a power law with floor followed by `sigmoid`.

Shapes: N points, M candidates, K coefficients, P exponents.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
# Exponents of the field lie below 1; at 3 a term is a step, not a law.
LARGEST_EXPONENT = 3.0
_LOG_RANGE = (np.log(1e-6), np.log(1e6))

Features = Callable[[Array, Array], tuple[Array, Array]]
ToRaw = Callable[[Array, Array, Array], dict[str, Array]]


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        formula: for people.
        inputs: names of the quantities it reads, in the order of the columns of the points.
        coefficients: K names; the first one is the floor where `has_floor`.
        exponents: P names of the nonlinear parameters in the search; logarithms are named log_*.
        bounds: [P, 2] of the search.
        features: of normalised inputs [N, I] and exponents [M, P]: values [M, N, K], derivatives [M, N, K, P].
        to_raw: of coefficients [M, K], exponents [M, P] and scales [I]: parameters in the units of the inputs.
        is_rising: of the sigmoid, whose answer is an accuracy.
    """

    name: str
    formula: str
    inputs: tuple[str, ...]
    coefficients: tuple[str, ...]
    exponents: tuple[str, ...]
    bounds: Array
    features: Features
    to_raw: ToRaw
    has_floor: bool = True
    is_rising: bool = False

    @property
    def num_parameters(self) -> int:
        """K + P."""
        return len(self.coefficients) + len(self.exponents)


def powers(z: Array, exponent: Array) -> tuple[Array, Array]:
    """z^-exponent [M, N] of z [N] and exponents [M], and its derivative."""
    logs = np.log(z)[None, :]
    value = np.exp(-exponent[:, None] * logs)
    return value, -logs * value


def _stack(values: list[Array], derivatives: dict[tuple[int, int], Array], num_exponents: int) -> tuple[Array, Array]:
    """Features [M, N, K] and their derivatives [M, N, K, P], of which `derivatives` holds those that are not 0."""
    first = np.broadcast_arrays(*values)
    slopes = np.zeros((*first[0].shape, len(values), num_exponents))
    for (k, p), value in derivatives.items():
        slopes[:, :, k, p] = value
    return np.stack(first, axis=-1), slopes


def _power(z: Array, theta: Array) -> tuple[Array, Array]:
    value, slope = powers(z[:, 0], theta[:, 0])
    return _stack([value], {(0, 0): slope}, 1)


def _power_floor(z: Array, theta: Array) -> tuple[Array, Array]:
    value, slope = powers(z[:, 0], theta[:, 0])
    return _stack([np.ones_like(value), value], {(1, 0): slope}, 1)


def _shifted_floor(z: Array, theta: Array) -> tuple[Array, Array]:
    shift = np.exp(theta[:, 1])[:, None]
    moved = z[:, 0][None, :] + shift
    value = moved ** -theta[:, :1]
    slopes = {(1, 0): -np.log(moved) * value, (1, 1): -theta[:, :1] * value * shift / moved}
    return _stack([np.ones_like(value), value], slopes, 2)


def _surface(z: Array, theta: Array) -> tuple[Array, Array]:
    of_n, slope_n = powers(z[:, 0], theta[:, 0])
    of_d, slope_d = powers(z[:, 1], theta[:, 1])
    return _stack([np.ones_like(of_n), of_n, of_d], {(1, 0): slope_n, (2, 1): slope_d}, 2)


def _overtraining(z: Array, theta: Array) -> tuple[Array, Array]:
    ratio, compute = z[:, 1] / z[:, 0], z[:, 2]
    first, slope_1 = powers(compute / ratio, theta[:, 0])
    second, slope_2 = powers(compute * ratio, theta[:, 0])
    return _stack([np.ones_like(first), first, second], {(1, 0): slope_1, (2, 0): slope_2}, 1)


def _bounded(z: Array, theta: Array) -> tuple[Array, Array]:
    """theta: log_a, alpha, log_b, beta, and with unique data log_c, gamma, delta; z: n, t, and d (unique)."""
    logs = np.log(z)
    exponents = [theta[:, :1] - theta[:, 1:2] * logs[:, 0], theta[:, 2:3] - theta[:, 3:4] * logs[:, 1]]
    inner = [(0, 0, 1.0), (0, 1, -logs[:, 0]), (1, 2, 1.0), (1, 3, -logs[:, 1])]
    if theta.shape[1] == 7:
        exponents.append(theta[:, 4:5] + theta[:, 5:6] * logs[:, 0] - theta[:, 6:7] * logs[:, 2])
        inner += [(2, 4, 1.0), (2, 5, logs[:, 0]), (2, 6, -logs[:, 2])]
    terms = [np.exp(np.clip(exponent, -60, 60)) for exponent in exponents]
    total = np.sum(terms, axis=0)
    share, slope = total / (1 + total), 1 / (1 + total) ** 2
    derivatives = {}
    for term, p, factor in inner:
        derivatives[0, p] = -slope * terms[term] * factor
        derivatives[1, p] = slope * terms[term] * factor
    return _stack([1 - share, share], derivatives, theta.shape[1])


def _sigmoid(z: Array, theta: Array) -> tuple[Array, Array]:
    """Rising as the loss falls: 1 / (1 + exp(k (loss - middle)))."""
    steepness = np.exp(theta[:, :1])
    distance = z[:, 0][None, :] - theta[:, 1:2]
    value = 1 / (1 + np.exp(np.clip(steepness * distance, -60, 60)))
    slope = -value * (1 - value)
    return _stack([np.ones_like(value), value], {(1, 0): slope * steepness * distance, (1, 1): -slope * steepness}, 2)


def _raw_power(c: Array, theta: Array, scales: Array) -> dict[str, Array]:
    return {"a": c[:, 0] * scales[0] ** theta[:, 0], "alpha": theta[:, 0]}


def _raw_power_floor(c: Array, theta: Array, scales: Array) -> dict[str, Array]:
    return {"E": c[:, 0], "a": c[:, 1] * scales[0] ** theta[:, 0], "alpha": theta[:, 0]}


def _raw_shifted(c: Array, theta: Array, scales: Array) -> dict[str, Array]:
    return {**_raw_power_floor(c, theta, scales), "b": np.exp(theta[:, 1]) * scales[0]}


def _raw_surface(c: Array, theta: Array, scales: Array) -> dict[str, Array]:
    alpha, beta = theta.T
    found = {"E": c[:, 0], "A": c[:, 1] * scales[0] ** alpha, "B": c[:, 2] * scales[1] ** beta}
    return {**found, "alpha": alpha, "beta": beta}


def _raw_overtraining(c: Array, theta: Array, scales: Array) -> dict[str, Array]:
    eta, ratio = theta[:, 0], scales[1] / scales[0]
    a, b = c[:, 1] * (scales[2] / ratio) ** eta, c[:, 2] * (scales[2] * ratio) ** eta
    return {"E": c[:, 0], "a": a, "b": b, "eta": eta}


def _raw_bounded(c: Array, theta: Array, scales: Array) -> dict[str, Array]:
    found = {"E": c[:, 0], "L0": c[:, 1]}
    found |= {"a": np.exp(theta[:, 0]) * scales[0] ** theta[:, 1], "alpha": theta[:, 1]}
    found |= {"b": np.exp(theta[:, 2]) * scales[1] ** theta[:, 3], "beta": theta[:, 3]}
    if theta.shape[1] == 7:
        gamma, delta = theta[:, 5], theta[:, 6]
        c_raw = np.exp(theta[:, 4]) * scales[2] ** delta / scales[0] ** gamma
        found |= {"c": c_raw, "gamma": gamma, "delta": delta}
    return found


def _raw_sigmoid(c: Array, theta: Array, scales: Array) -> dict[str, Array]:
    """scales: mean and standard deviation of the losses."""
    mean, deviation = scales
    steepness, middle = np.exp(theta[:, 0]) / deviation, mean + deviation * theta[:, 1]
    return {"bottom": c[:, 0], "span": c[:, 1], "k": steepness, "L0": middle}


_EXPONENT = (1e-3, LARGEST_EXPONENT)
_BOUNDED = [_LOG_RANGE, _EXPONENT]
FORMS = {
    form.name: form
    for form in (
        Form("power", "a x^-alpha", ("x",), ("a",), ("alpha",), np.array([_EXPONENT]), _power, _raw_power, False),
        Form(
            "power_floor", "E + a x^-alpha", ("x",), ("E", "a"), ("alpha",), np.array([_EXPONENT]),
            _power_floor, _raw_power_floor,
        ),
        Form(
            "shifted_floor", "E + a (x + b)^-alpha", ("x",), ("E", "a"), ("alpha", "log_b"),
            np.array([_EXPONENT, (np.log(1e-5), np.log(1e3))]), _shifted_floor, _raw_shifted,
        ),
        Form(
            "surface", "E + A n^-alpha + B d^-beta", ("n", "d"), ("E", "A", "B"), ("alpha", "beta"),
            np.array([_EXPONENT, _EXPONENT]), _surface, _raw_surface,
        ),
        Form(
            "overtraining", "E + (a M^eta + b M^-eta) C^-eta, M = d / n", ("n", "d", "x"), ("E", "a", "b"), ("eta",),
            np.array([_EXPONENT]), _overtraining, _raw_overtraining,
        ),
        Form(
            "bounded", "E + (L0 - E) h / (1 + h), h = a n^-alpha + b d^-beta", ("n", "d"), ("E", "L0"),
            ("log_a", "alpha", "log_b", "beta"), np.array(_BOUNDED * 2), _bounded, _raw_bounded,
        ),
        Form(
            "bounded_unique", "E + (L0 - E) h / (1 + h), h = a n^-alpha + b d^-beta + c n^gamma u^-delta",
            ("n", "d", "u"), ("E", "L0"), ("log_a", "alpha", "log_b", "beta", "log_c", "gamma", "delta"),
            np.array([*_BOUNDED * 2, _LOG_RANGE, _EXPONENT, _EXPONENT]), _bounded, _raw_bounded,
        ),
        Form(
            "sigmoid", "bottom + span / (1 + exp(k (loss - L0)))", ("loss",), ("bottom", "span"),
            ("log_k", "middle"), np.array([(np.log(0.05), np.log(50)), (-8.0, 8.0)]), _sigmoid, _raw_sigmoid,
            is_rising=True,
        ),
    )
}  # fmt: skip


def normalise(form: Form, inputs: Array, scales: Array | None = None) -> tuple[Array, Array]:
    """Inputs [N, I] without units, and the scales that took them away.

    Args: scales: of an earlier call, to place new points; None: those of these points.
    """
    if form.name == "sigmoid":
        scales = np.array([inputs.mean(), inputs.std() or 1.0]) if scales is None else scales
        return (inputs - scales[0]) / scales[1], scales
    scales = np.exp(np.log(inputs).mean(axis=0)) if scales is None else scales
    return inputs / scales, scales
