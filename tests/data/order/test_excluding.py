"""`data.exclude`: samples that a run never sees, and what the list does to its identity."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_lightning.config import compose, exclusion, identity
from clip_lightning.config.schema import Config
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.data.layouts.layout import Layout, RawSample
from clip_lightning.data.layouts.mixture import Mixture, build_order
from clip_lightning.data.order.excluding import Excluding, image_hash, remaining
from clip_lightning.data.order.order import Order
from clip_lightning.errors import DataError, UserError
from tests.support.small_data import jpeg, pairs, write_tar

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda found: sum(found) > 1)


@st.composite
def sizes_with_excluded(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of shards, and ids of samples of which at least one remains."""
    shard_sizes = np.array(draw(sizes))
    total = int(shard_sizes.sum())
    excluded = draw(st.sets(st.integers(0, total - 1), min_size=1, max_size=total - 1))
    return shard_sizes, np.array(sorted(excluded))


def order_of(shard_sizes: np.ndarray, excluded: np.ndarray, **settings: int) -> Excluding:
    return Excluding(Order(remaining(shard_sizes, excluded), **{"seed": 0, **settings}), excluded)  # type: ignore[arg-type]


@settings(deadline=None)
@given(sizes_with_excluded(), st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 15), st.integers(0, 3))
def test_all_samples_but_those_left_out_come_once_an_epoch_or_are_held_out(
    case: tuple[np.ndarray, np.ndarray], seed: int, held: int, window: int, epoch: int
) -> None:
    shard_sizes, excluded = case
    order = order_of(shard_sizes, excluded, seed=seed, num_held_out=held, window_shards=window)
    positions = np.arange(epoch * order.num_samples, (epoch + 1) * order.num_samples)
    seen = order.locate(positions).sample_ids.tolist()
    expected = set(range(int(shard_sizes.sum()))) - set(excluded.tolist())
    assert sorted([*seen, *order.held_out().tolist()]) == sorted(expected)
    assert sorted(order.training_ids(np.arange(order.num_samples)).tolist()) == sorted(seen)


@pytest.mark.slow
@settings(deadline=None)
@given(sizes_with_excluded(), st.integers(0, 9), st.data())
def test_a_position_holds_one_sample_however_positions_are_split(
    case: tuple[np.ndarray, np.ndarray], seed: int, data: st.DataObject
) -> None:
    order = order_of(*case, seed=seed)
    whole = order.locate(np.arange(3 * order.num_samples)).sample_ids
    some = data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=20))
    assert order_of(*case, seed=seed).locate(np.array(some)).sample_ids.tolist() == whole[some].tolist()


@settings(deadline=None)
@given(sizes_with_excluded(), st.integers(0, 20))
def test_a_substitute_is_a_sample_that_is_trained_on(case: tuple[np.ndarray, np.ndarray], attempt: int) -> None:
    order = order_of(*case)
    training = order.training_ids(np.arange(order.num_samples)).tolist()
    for sample_id in training[:5]:
        assert order.substitute(sample_id, 0, attempt) in training


@settings(deadline=None)
@given(sizes_with_excluded())
def test_shards_of_which_nothing_remains_are_not_needed(case: tuple[np.ndarray, np.ndarray]) -> None:
    shard_sizes, excluded = case
    order = order_of(shard_sizes, excluded)
    num = int((remaining(shard_sizes, excluded) > 0).sum())
    needed = {shard for _, (_, shard) in zip(range(num), order.shards_from(0), strict=False)}
    shards = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    assert needed == set(shards[order.training_ids(np.arange(order.num_samples))].tolist())


class Numbers(Layout):
    """Samples that are their numbers."""

    def __init__(self, *shard_sizes: int) -> None:
        self.shard_sizes = np.array(shard_sizes, dtype=np.int64)
        self.num_samples = sum(shard_sizes)

    def read(self, sample_id: int) -> RawSample:
        return RawSample(np.full((1, 1, 3), sample_id, np.uint8), [str(sample_id)])


@pytest.mark.slow
def test_the_ids_of_a_mixture_count_through_its_parts() -> None:
    layout = Mixture({"first": Numbers(30, 20), "second": Numbers(100)}, [1.0, 1.0])
    excluded = np.array([0, 1, 49, 50, 149])
    order = build_order(layout, Config().data, seed=0, num_held_out=10, limit=0, excluded=excluded)
    seen = order.locate(np.arange(20_000)).sample_ids
    assert sorted({*seen.tolist(), *order.held_out().tolist()}) == sorted(set(range(150)) - set(excluded.tolist()))
    with pytest.raises(DataError, match="leaves no sample of first"):
        build_order(layout, Config().data, seed=0, num_held_out=0, limit=0, excluded=np.arange(50))


# The list

OTHER_HASH = "0" * 64


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "tars"
    for shard in range(3):
        write_tar(folder / f"{shard:05d}.tar", pairs(10 * shard, 10))
    return folder


def config_of(tars: Path, *words: str) -> Config:
    config: Config = compose.load("train", ["data=webdataset", f"data.path={tars}", "model=tiny", *words], check=False)
    return config


def module_of(config: Config) -> ContrastiveDataModule:
    return ContrastiveDataModule(config.data, image_size=16, global_batch=4)


@pytest.mark.slow
def test_ids_and_hashes_name_the_same_samples(tars: Path, tmp_path: Path) -> None:
    ids, hashes = tmp_path / "ids.txt", tmp_path / "hashes.txt"
    ids.write_text("# two photographs\n17\n\n3\n17\n")
    hashes.write_text("\n".join(f"sha256:{found}" for found in (image_hash(jpeg(3)), image_hash(jpeg(17)), OTHER_HASH)))
    for path in (ids, hashes):
        module = module_of(config_of(tars, f"data.exclude={path}"))
        assert module.num_excluded == 2
        seen = module.order.locate(np.arange(module.num_samples)).sample_ids
        assert set(range(30)) - set(seen.tolist()) - set(module.held_out.tolist()) == {3, 17}
        assert "data.exclude leaves out 2 of 30 pairs" in module.notes


@pytest.mark.slow
def test_the_list_is_part_of_the_science_and_of_the_data(tars: Path, tmp_path: Path) -> None:
    path, same, other = (tmp_path / name for name in ("a.txt", "b.txt", "c.txt"))
    path.write_text("3\n17\n")
    same.write_text("# the same samples\n17\n3\n")
    other.write_text("3\n")
    without = config_of(tars)
    configs = [config_of(tars, f"data.exclude={name}") for name in (path, same, other)]
    hashes = [identity.science_hash(config) for config in (without, *configs)]
    assert hashes[1] == hashes[2]
    assert len({hashes[0], hashes[1], hashes[3]}) == 3
    modules = [module_of(config) for config in (without, configs[0], configs[2])]
    assert len({module.fingerprint for module in modules}) == 3
    assert len({module.order.digest() for module in modules}) == 3


@pytest.mark.slow
def test_a_list_that_changed_since_the_start_is_refused(tars: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("3\n")
    frozen = compose.dump(config_of(tars, f"data.exclude={path}"))
    (tmp_path / "config.yaml").write_text(frozen)
    config = compose.read(tmp_path / "config.yaml")
    assert module_of(config).num_excluded == 1
    path.write_text("4\n")
    with pytest.raises(DataError, match="the list has changed since the run began"):
        module_of(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("three\n", "line 1 is 'three', neither a sample id nor sha256"),
        ("sha256:abc\n", "line 1 is 'sha256:abc'"),
        ("# data: 0123456789abcdef\n3\n", "counts the samples of other data"),
        ("30\n", "names sample 30, and the data has 30, counted from 0"),
        ("\n".join(map(str, range(30))), "names all samples"),
    ],
)
def test_a_wrong_list_is_refused(tars: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        module_of(config_of(tars, f"data.exclude={path}"))


@pytest.mark.slow
def test_a_missing_list_and_a_hash_set_by_hand_are_refused(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        config_of(tars, f"data.exclude={tmp_path}/none.txt")
    with pytest.raises(UserError, match="is filled in from"):
        config_of(tars, "data.excluded=0123")


def test_hashes_are_refused_where_images_would_be_downloaded(tars: Path, tmp_path: Path) -> None:
    from clip_lightning.data.order.excluding import excluded_ids

    path = tmp_path / "list.txt"
    path.write_text(f"sha256:{OTHER_HASH}\n")
    layout = Numbers(5)
    layout.remote = True
    with pytest.raises(DataError, match="write the list as sample ids"):
        excluded_ids(layout, config_of(tars, f"data.exclude={path}").data)


def test_a_written_list_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(exclusion.text_of([9, 2, 9], "0123456789abcdef", ["found"]))
    assert exclusion.read(str(path)) == ([2, 9], [], "0123456789abcdef")
