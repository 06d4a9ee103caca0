"""The loader: the same samples and pixels for any number of workers and ranks, and after any stop."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from clip_lightning.config.schema import ValidationConfig
from clip_lightning.data.batches import Batch
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.data.loader import TrainingPieces, joined
from clip_lightning.errors import DataError
from tests.support.small_data import jpeg, pairs, write_tar

MakeModule = Callable[..., ContrastiveDataModule]
Rows = list[tuple[int, int, str, str]]


def rows_of(batch: Batch) -> Rows:
    """Position, id, and hashes of pixels and caption of each pair."""
    lengths = batch.lengths.tolist()
    return [
        (position, sample_id, hashlib.sha256(image.numpy().tobytes()).hexdigest(), str(tokens[:length].tolist()))
        for position, sample_id, image, tokens, length in zip(
            batch.positions.tolist(),
            batch.sample_ids.tolist(),
            batch.images.contiguous(),
            batch.tokens,
            lengths,
            strict=True,
        )
    ]


def steps(module: ContrastiveDataModule, first: int, last: int, world: int, workers: int) -> Rows:
    """The pairs of steps first .. last - 1, by `world` ranks with `workers` processes each."""
    maker = module._maker()
    rows = []
    for rank in range(world):
        pieces = TrainingPieces(maker, first * module.global_batch, module.global_batch, rank, world)
        count = (last - first) * pieces.per_step
        loader = DataLoader(pieces, batch_size=None, sampler=range(count), num_workers=workers)
        rows += [row for made in loader for row in rows_of(made.batch)]
    return sorted(rows)


@pytest.mark.ci
@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"window_shards": 2}, marks=pytest.mark.slow),
        pytest.param({"resampled": True}, marks=pytest.mark.slow),
    ],
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_workers_ranks_and_stops_change_nothing(
    module: MakeModule, shards: Path, changes: dict[str, object], data: st.DataObject
) -> None:
    whole = steps(module(shards, **changes), 0, 10, 1, 0)
    stop = data.draw(st.integers(0, 10))
    before, after = ((data.draw(st.sampled_from([1, 2, 4])), data.draw(st.sampled_from([0, 1, 4]))) for _ in range(2))
    rows = steps(module(shards, **changes), 0, stop, *before) + steps(module(shards, **changes), stop, 10, *after)
    assert rows == whole


@pytest.mark.slow
def test_pairs_that_are_left_out_stay_out_on_every_rank_and_after_a_stop(
    module: MakeModule, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("0\n7\n19\n58\n")
    changes = {"exclude": str(tmp_path / "list.txt")}
    whole = steps(module(shards, **changes), 0, 16, 1, 0)
    assert {row[1] for row in whole} == set(range(59)) - {0, 7, 19, 58}
    again = steps(module(shards, **changes), 0, 5, 2, 0) + steps(module(shards, **changes), 5, 16, 4, 1)
    assert again == whole


def test_each_pair_comes_once_an_epoch(module: MakeModule, shards: Path) -> None:
    made = module(shards, total_samples=59 * 8)
    rows = [row for batch in made.train_dataloader() for row in rows_of(batch)]
    assert made.num_samples == 59
    ids = np.array([row[1] for row in rows]).reshape(8, 59)
    assert all(sorted(epoch) == list(range(59)) for epoch in ids.tolist())
    # A pair comes back in another crop.
    assert len({row[2] for row in rows if row[1] == 0}) > 4


def test_a_loader_resumes_at_samples_seen_and_knows_its_length(module: MakeModule, shards: Path) -> None:
    made = module(shards, total_samples=80, workers=2)
    rows = [rows_of(batch) for batch in made.train_dataloader()]
    assert len(made.train_dataloader()) == len(rows) == 10
    made.samples_seen = 56
    loader = made.train_dataloader()
    assert len(loader) == 3
    assert [rows_of(batch) for batch in loader] == rows[7:]
    made.samples_seen = 80
    assert list(made.train_dataloader()) == []


@pytest.mark.slow
def test_global_generators_are_not_touched(module: MakeModule, shards: Path) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(module(shards, workers=2).train_dataloader())
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_validation_pairs_are_held_out_and_fixed(module: MakeModule, shards: Path) -> None:
    made = module(shards, validation=ValidationConfig(num_samples=5), total_samples=54 * 4)
    held_out = [row for batch in made.val_dataloader() for row in rows_of(batch)]
    again = [
        row
        for batch in module(shards, validation=ValidationConfig(num_samples=5)).val_dataloader()
        for row in rows_of(batch)
    ]
    trained = {row[1] for batch in made.train_dataloader() for row in rows_of(batch)}
    assert len(held_out) == 5
    assert held_out == again
    assert not trained & {row[1] for row in held_out}
    assert len(trained) == 54


def test_validation_may_have_a_path_of_its_own(module: MakeModule, shards: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "0.tar").write_bytes((shards / "00003.tar").read_bytes())
    made = module(shards, validation=ValidationConfig(num_samples=12, path=str(own)))
    assert made.num_samples == 59
    ids = [row[1] for batch in made.val_dataloader() for row in rows_of(batch)]
    assert len(ids) == 12
    assert max(ids) < 30


def test_data_without_a_path_refuses_a_path_of_validation_pairs(module: MakeModule, shards: Path) -> None:
    with pytest.raises(DataError, match=r"data\.validation\.path=.*data\.kind=scenes reads no path"):
        module(None, kind="scenes", num_samples=100, validation=ValidationConfig(path=str(shards)))


def test_fewer_than_ten_pairs_hold_none_out(module: MakeModule, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(0, 8))
    made = module(tmp_path, validation=ValidationConfig())
    made.check_validation()
    assert made.num_validation == 0
    assert list(made.val_dataloader()) == []
    assert made.num_samples == 8


@pytest.mark.parametrize("has_own_path", [False, True])
def test_bad_validation_pairs_are_marked_and_counted(module: MakeModule, tmp_path: Path, has_own_path: bool) -> None:
    members = pairs(0, 40)
    members[2 * 39] = ("00039.jpg", jpeg(39, 100, 100)[:-400])
    write_tar(tmp_path / "a" / "0.tar", members)
    validation = ValidationConfig(num_samples=4, path=str(tmp_path / "a") if has_own_path else None)
    if has_own_path:
        validation.num_samples = 40
        write_tar(tmp_path / "b" / "0.tar", pairs(100, 20))
    made = module(tmp_path / ("b" if has_own_path else "a"), validation=validation, max_bad_share=0.5)
    made.check_validation()
    (batch,) = made.val_dataloader()
    assert batch.positions.tolist() == [*range(len(batch.positions) - 1), -len(batch.positions)]
    assert made.bad_samples == {"truncated image": 1}
    # Where the first of them cannot be read, the run does not start.
    write_tar(tmp_path / "c" / "0.tar", [(n, jpeg(1, 100, 100)[:-400] if n.endswith("jpg") else c) for n, c in members])
    made = module(tmp_path / "c", validation=ValidationConfig(num_samples=4), max_bad_share=0.5)
    with pytest.raises(DataError, match=r"none of the first 4 validation pairs .*: truncated image"):
        made.check_validation()


def test_overfitting_sees_only_the_first_samples(module: MakeModule, shards: Path) -> None:
    made = module(shards, overfit_samples=8, total_samples=80)
    assert made.num_samples == 8
    assert {row[1] for batch in made.train_dataloader() for row in rows_of(batch)} == set(range(8))


def test_pieces_of_a_large_share_are_joined(module: MakeModule, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [rows_of(batch) for batch in module(shards, global_batch=20, total_samples=60).train_dataloader()]
    monkeypatch.setattr("clip_lightning.data.loader.LARGEST_PIECE", 6)
    parts = list(module(shards, global_batch=20, total_samples=60, workers=2).train_dataloader())
    assert [rows_of(batch) for batch in parts] == whole
    assert parts[0].images.is_contiguous(memory_format=torch.channels_last)


def test_joining_pads_to_the_longest() -> None:
    def batch(length: int) -> Batch:
        tokens = torch.ones(2, length, dtype=torch.int64)
        return Batch(torch.zeros(2, 3, 4, 4), tokens, torch.tensor([length] * 2), torch.arange(2), torch.arange(2), 1)

    both = joined([batch(3), batch(5)], pad_id=9)
    assert both.tokens.tolist() == [[1, 1, 1, 9, 9]] * 2 + [[1] * 5] * 2
    assert both.num_cut == 2


def test_pinned_pieces_are_joined_in_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Size] = []
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor)
    ids = torch.arange(2)
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.ones(2, 5, dtype=torch.int64), ids, ids, ids, 0)
    joined([batch, batch], pad_id=9)
    assert sorted(map(tuple, pinned)) == [(4,), (4,), (4,), (4, 3, 4, 4), (4, 5)]


def test_captions_for_a_tokenizer_are_spread_over_the_data(module: MakeModule, shards: Path) -> None:
    made = module(shards)
    captions = list(made.captions(10))
    assert len(captions) == 10
    assert captions[0] == "picture number 0"
    assert int(captions[-1].split()[-1]) > 50
    assert len(list(made.captions(1000))) == 59


def test_the_fingerprint_detects_changed_data(module: MakeModule, shards: Path, tmp_path: Path) -> None:
    before = module(shards).fingerprint
    moved = tmp_path / "moved"
    shards.rename(moved)
    assert module(moved).fingerprint == before
    (moved / "00002.tar").unlink()
    assert module(moved).fingerprint != before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_batches_are_pinned_for_a_gpu(module: MakeModule, shards: Path) -> None:
    batch = next(iter(module(shards, workers=1).train_dataloader()))
    assert batch.images.is_pinned()
    assert batch.images.dtype is torch.uint8
    assert torch.equal(batch.images.to("cuda", non_blocking=True).cpu(), batch.images)
