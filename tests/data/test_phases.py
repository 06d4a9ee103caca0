"""Workers make images and texts of the phase in which a position stands, and choose the same samples as without."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clip_lightning.config.phases import Phase
from clip_lightning.config.schema import ValidationConfig
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.data.order.skip_windows import SkipWindow
from clip_lightning.tokenizer import Tokenizer
from tests.data.test_loader import rows_of

MakeModule = Callable[..., ContrastiveDataModule]
# Steps of 8: three small, two with short texts, the rest in full.
PHASES = [Phase(0, 8, 6, 0.5), Phase(24, 16, 5, 0.5), Phase(40, 16, 16, 0.0)]
STEPS = [(8, 6)] * 3 + [(16, 5)] * 2 + [(16, 16)] * 5


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("largest_piece", [1024, 3])
def test_sizes_change_exactly_at_the_step_boundary_and_samples_stay(
    module: MakeModule,
    shards: Path,
    tokenizer: Tokenizer,
    workers: int,
    largest_piece: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clip_lightning.data.loader.LARGEST_PIECE", largest_piece)
    phased, plain = (module(shards, total_samples=80, workers=workers) for _ in range(2))
    phased.phases = PHASES
    pairs = list(zip(phased.train_dataloader(), plain.train_dataloader(), strict=True))
    assert [batch.images.shape[2:] for batch, _ in pairs] == [(size, size) for size, _ in STEPS]
    for (batch, other), (_, length) in zip(pairs, STEPS, strict=True):
        assert batch.sample_ids.tolist() == other.sample_ids.tolist()
        assert batch.positions.tolist() == other.positions.tolist()
        assert batch.lengths.tolist() == other.lengths.clamp(max=length).tolist()
        for row, whole, end in zip(batch.tokens, other.tokens, batch.lengths.tolist(), strict=True):
            assert row[: end - 1].tolist() == whole[: end - 1].tolist()
            assert row[end - 1] == tokenizer.end_id
    assert max(batch.lengths.max() for batch, _ in pairs[5:]) > 6, "else nothing was cut"
    # In the last phase, which is the model's own, the pixels are those of a run without phases.
    assert [rows_of(batch) for batch, _ in pairs[5:]] == [rows_of(other) for _, other in pairs[5:]]
    phased.samples_seen = 16
    assert [rows_of(batch) for batch in phased.train_dataloader()] == [rows_of(batch) for batch, _ in pairs[2:]]


def test_a_phase_follows_the_samples_that_were_trained_on_and_not_those_skip_windows(
    module: MakeModule, shards: Path
) -> None:
    whole, passing = (module(shards, total_samples=80) for _ in range(2))
    passing.phases, passing.skip_windows = PHASES, (SkipWindow(8, 8, 32),)
    steps, passed = list(whole.train_dataloader()), list(passing.train_dataloader())
    assert [batch.images.shape[2:] for batch in passed] == [(size, size) for size, _ in STEPS]
    assert [batch.positions[0].item() for batch in passed] == [0, *range(32, 104, 8)]
    assert [batch.sample_ids.tolist() for batch in passed[1:7]] == [batch.sample_ids.tolist() for batch in steps[4:]]


def test_held_out_pairs_are_in_full(module: MakeModule, shards: Path) -> None:
    made = module(shards, validation=ValidationConfig(num_samples=5))
    made.phases = [Phase(0, 8, 5, 0.5)]
    [batch] = made.val_dataloader()
    assert batch.images.shape[2:] == (16, 16)
    assert batch.lengths.max() > 5
