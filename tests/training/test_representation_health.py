"""Values of representation health on features whose answer is known, and the callback in a plain Trainer."""

import csv
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.nn.functional import normalize

from clip_lightning import ClipModule, ContrastiveDataModule, load_config
from clip_lightning.errors import UserError
from clip_lightning.training.representation_health import (
    NAMES,
    RepresentationHealth,
    alignment,
    dead_directions,
    health,
    modality_gap,
    rankme,
    uniformity,
)


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Unit features spread evenly over the sphere."""
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_rankme_counts_the_dimensions_in_use() -> None:
    basis = torch.eye(8, dtype=torch.float64)
    for used in (1, 3, 8):
        rows = basis[:used].repeat(5, 1)
        assert rankme(rows) == pytest.approx(used, rel=1e-4)
    assert 60 < rankme(points(4096, 64)) <= 64.01
    # Two directions, of which one has a quarter of the singular values' sum.
    uneven = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    assert rankme(uneven) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), rel=1e-5)


def test_modality_gap_is_the_distance_of_the_means() -> None:
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    assert modality_gap(image, text) == pytest.approx(1.0)
    assert modality_gap(image, image) == 0
    assert modality_gap(points(8192, 16), points(8192, 16, seed=1)) < 0.03


def test_alignment_is_the_mean_squared_distance_of_pairs() -> None:
    image = torch.eye(4, dtype=torch.float64)
    assert alignment(image, image) == 0
    assert alignment(image, image.roll(1, 0)) == pytest.approx(2.0)
    assert alignment(image, -image) == pytest.approx(4.0)


def test_uniformity_of_known_features() -> None:
    assert uniformity(torch.ones(5, 3) / 3**0.5) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.eye(6, dtype=torch.float64)) == pytest.approx(-4.0)  # all squared distances are 2
    assert uniformity(points(512, 64)) < uniformity(normalize(points(512, 64) + 1, dim=1))


def test_dead_directions_are_those_that_hardly_vary() -> None:
    rows = torch.randn(200, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert dead_directions(rows) == 0
    assert dead_directions(rows * torch.tensor([1.0] * 7 + [1e-4] * 3)) == pytest.approx(0.3)
    assert dead_directions(torch.ones(20, 4, dtype=torch.float64)) == 1
    # Fewer rows than dimensions: only the N - 1 directions that they can have are counted.
    assert dead_directions(points(6, 32)) == 0


@given(st.integers(3, 40), st.integers(2, 20), st.integers(0, 1000))
def test_all_values_are_within_their_ranges(n: int, d: int, seed: int) -> None:
    found = health(points(n, d, seed).float(), points(n, d, seed + 1).float())
    assert tuple(found) == NAMES
    for tower in ("image", "text"):
        assert 1 <= found[f"rankme_{tower}"] <= min(n, d) + 1e-3
        assert -8 <= found[f"uniformity_{tower}"] <= 0
        assert 0 <= found[f"dead_{tower}"] <= 1
    assert 0 <= found["modality_gap"] <= 2
    assert 0 <= found["alignment"] <= 4


def test_features_that_are_not_finite_give_nan() -> None:
    broken = points(5, 4).float()
    broken[2, 1] = torch.inf
    assert all(math.isnan(value) for value in health(points(5, 4).float(), broken).values())


@pytest.mark.slow
def test_a_plain_trainer_logs_it_and_the_model_trains_as_without_it(tmp_path: Path) -> None:
    def weights_after(*callbacks: Callback) -> dict[str, torch.Tensor]:
        config = load_config(
            "model=tiny", "data=scenes", "data.num_samples=300", "data.validation.num_samples=20",
            "compute.duration=3 steps", "compute.global_batch=8", "cluster.workers=0",
        )  # fmt: skip
        trainer = Trainer(
            accelerator="cpu", logger=CSVLogger(tmp_path, name="csv"), enable_checkpointing=False, max_epochs=1,
            enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        )  # fmt: skip
        module = ClipModule(config)
        trainer.fit(module, datamodule=ContrastiveDataModule(config))
        if callbacks:
            assert float(trainer.callback_metrics["representation/rankme_image"]) > 1
        return module.model.state_dict()

    with_it, without = weights_after(RepresentationHealth(pairs=16)), weights_after()
    torch.testing.assert_close(with_it, without, rtol=0, atol=0)
    file = tmp_path / "csv/version_0/metrics.csv"
    (row,) = [row for row in csv.DictReader(file.open()) if row["representation/alignment"]]
    assert {f"representation/{name}" for name in NAMES} <= row.keys()
    assert 0 < float(row["representation/alignment"]) < 4


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(UserError, match="pairs=2 must be 3 or more"):
        RepresentationHealth(pairs=2)
