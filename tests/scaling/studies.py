"""Synthetic studies with known answers, and the published tables where they are present."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clip_lightning.scaling.table import Points, points_of

# Hoffmann et al. 2022, equation 10: the fitted surface of Chinchilla.
CHINCHILLA = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
REFERENCE = Path(__file__).parents[3] / "shared" / "reference"


def reference(name: str) -> pd.DataFrame:
    """A published table, rows from 1; skips where it is absent."""
    if not (REFERENCE / name).exists():
        pytest.skip(f"{REFERENCE / name} is absent")
    table = pd.read_csv(REFERENCE / name)
    table.index = pd.RangeIndex(1, len(table) + 1)
    return table


def surface(n: np.ndarray, d: np.ndarray, answer: dict[str, float] | None = None) -> np.ndarray:
    """The loss of a surface."""
    p = answer or CHINCHILLA
    return np.asarray(p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"])


def best_n(budget: float, answer: dict[str, float] | None = None) -> float:
    """n* of C = 6 n d."""
    p = answer or CHINCHILLA
    g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    return float(g * (budget / 6) ** (p["beta"] / (p["alpha"] + p["beta"])))


def grid(
    budgets: np.ndarray, width: float, num: int, *, noise: float = 0.0, seeds: int = 1, random: int = 0,
    answer: dict[str, float] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """An isoFLOP grid centred on the optimum: columns flops, n, d, seed, loss."""
    rng = np.random.default_rng(random)
    rows = []
    for budget in budgets:
        best_d = budget / 6 / best_n(budget, answer)
        for factor in np.geomspace(1 / width, width, num):
            d = best_d * factor
            n = budget / 6 / d
            for seed in range(seeds):
                loss = float(surface(np.array(n), np.array(d), answer)) * np.exp(noise * rng.standard_normal())
                rows.append((budget, n, d, seed, loss))
    table = pd.DataFrame(rows, columns=["flops", "n", "d", "seed", "loss"])
    table.index = pd.RangeIndex(1, len(table) + 1)
    return table


def points(table: pd.DataFrame, **columns: str) -> Points:
    """The points of a grid."""
    return points_of(table, columns or {"n": "n", "d": "d", "y": "loss"}, "surface")
