"""The order of the data: every sample once an epoch, in an order that only seed, epoch and position decide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clip_lightning.data.layouts.mixture import BLOCK, MixtureOrder, held_out_of_parts, quotas
from clip_lightning.data.order.counter_rng import hashed, permuted, uniforms
from clip_lightning.data.order.order import Order

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


def ids_of(order: Order, epoch: int) -> np.ndarray:
    return order.locate(np.arange(epoch * order.num_samples, (epoch + 1) * order.num_samples)).sample_ids


@pytest.mark.slow
@given(sizes, st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 15), st.integers(0, 3))
def test_each_training_sample_comes_once_an_epoch_and_held_out_ones_never(
    shard_sizes: list[int], seed: int, held: int, window: int, epoch: int
) -> None:
    order = Order(np.array(shard_sizes), seed=seed, num_held_out=held, window_shards=window)
    seen = ids_of(order, epoch)
    assert sorted([*seen.tolist(), *order.held_out().tolist()]) == list(range(sum(shard_sizes)))
    assert len(order.held_out()) == min(held, sum(shard_sizes) // 10)


@pytest.mark.slow
@given(sizes, st.integers(0, 2**31), st.integers(1, 15), st.data())
def test_a_position_holds_the_same_sample_whoever_asks_and_with_whatever_else(
    shard_sizes: list[int], seed: int, window: int, data: st.DataObject
) -> None:
    total = 3 * sum(shard_sizes)
    whole = Order(np.array(shard_sizes), seed=seed, window_shards=window).locate(np.arange(total))
    some = data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=20))
    order = Order(np.array(shard_sizes), seed=seed, window_shards=window)
    located = order.locate(np.array(some))
    assert located.sample_ids.tolist() == whole.sample_ids[some].tolist()
    assert located.epochs.tolist() == [position // sum(shard_sizes) for position in some]


@pytest.mark.slow
@given(sizes, st.integers(1, 5), st.integers(0, 9))
def test_windows_hold_whole_shards(shard_sizes: list[int], window: int, seed: int) -> None:
    order = Order(np.array(shard_sizes), seed=seed, window_shards=window)
    shard_of = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    shards = [
        shard for _, shard in zip(range(sum(size > 0 for size in shard_sizes)), order.shards_from(0), strict=False)
    ]
    seen = list(dict.fromkeys(shard_of[ids_of(order, 0)].tolist()))
    assert {shard for _, shard in shards} == set(seen)
    # A shard is met before all shards of later windows are done with, and never after a window that follows its own.
    begins = dict((shard, begin) for begin, shard in shards)
    order_of_begins = [begins[shard] for shard in shard_of[ids_of(order, 0)].tolist()]
    assert order_of_begins == sorted(order_of_begins)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return ids_of(Order(np.array([50, 50]), seed=seed), epoch).tolist()

    assert len({tuple(first(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_all_permutations_of_a_few_are_equally_likely(size: int) -> None:
    draws = 12_000
    index = np.tile(np.arange(size), draws)
    key = np.repeat(hashed(np.arange(draws)), size)
    rows = permuted(index, np.array([size]), key).reshape(draws, size)
    found, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(found) == np.prod(np.arange(1, size + 1))
    assert len(found) == 1 or stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.ci
@pytest.mark.parametrize("window", [None, 3])
def test_the_shuffle_is_as_even_as_chance(window: int | None) -> None:
    """Over many epochs each sample is at each place as often as any other, and so do neighbours' distances."""
    shard_sizes = np.array([10] * 6)
    order = Order(shard_sizes, seed=1, window_shards=window)
    epochs = np.stack([ids_of(order, epoch) for epoch in range(2000)])
    counts = np.zeros((60, 60))
    for place in range(60):
        counts[place] = np.bincount(epochs[:, place], minlength=60)
    assert stats.chisquare(counts.ravel(), ddof=2 * 59).pvalue > 1e-4
    if window is None:
        distance = np.bincount((epochs[:, 1] - epochs[:, 0]) % 60, minlength=60)[1:]
        assert stats.chisquare(distance).pvalue > 1e-4


def test_uniform_numbers_are_uniform_and_independent() -> None:
    numbers = uniforms(3, np.arange(20_000), num=4)
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(numbers.T) - np.eye(4)).max() < 0.03


@given(sizes, st.integers(1, 60))
def test_a_limit_keeps_the_first_training_samples(shard_sizes: list[int], limit: int) -> None:
    order = Order(np.array(shard_sizes), seed=0, limit=limit)
    assert sorted(ids_of(order, 0).tolist()) == list(range(min(limit, sum(shard_sizes))))
    assert order.training_ids(np.arange(order.num_samples)).tolist() == list(range(order.num_samples))


def test_resampling_draws_with_replacement_from_all() -> None:
    order = Order(np.array([40, 60]), seed=0, resampled=True)
    drawn = np.concatenate([ids_of(order, epoch) for epoch in range(300)])
    assert len(np.unique(ids_of(order, 0))) < 80
    assert stats.chisquare(np.bincount(drawn, minlength=100)).pvalue > 1e-4


@pytest.mark.slow
@given(sizes.filter(lambda found: sum(found) > 1), st.integers(0, 100), st.integers(0, 20))
def test_a_substitute_is_a_training_sample_and_always_the_same(shard_sizes: list[int], seed: int, attempt: int) -> None:
    order = Order(np.array(shard_sizes), seed=seed, num_held_out=5)
    training = set(ids_of(order, 0).tolist())
    for sample_id in sorted(training)[:5]:
        found = order.substitute(sample_id, 0, attempt)
        assert found in training
        assert found == Order(np.array(shard_sizes), seed=seed, num_held_out=5).substitute(sample_id, 0, attempt)


def mixture(seed: int = 0, **settings: object) -> MixtureOrder:
    orders = [Order(np.array([size, size]), seed=seed + size, **settings) for size in (100, 350)]
    return MixtureOrder(orders, np.array([0, 200]), [0.3, 0.7], seed)


def test_a_mixture_keeps_its_weights_and_each_part_its_epochs() -> None:
    order = mixture()
    located = order.locate(np.arange(2 * BLOCK))
    first = located.sample_ids < 200
    assert first.sum() == 0.3 * 2 * BLOCK
    for epoch in range(3):
        for part, count in ((first, 200), (~first, 700)):
            seen = located.sample_ids[part & (located.epochs == epoch)]
            assert len(seen) == count
            assert len(np.unique(seen)) == count
    some = np.array([17, BLOCK + 5, 3, 2 * BLOCK - 1])
    assert mixture().locate(some).sample_ids.tolist() == located.sample_ids[some].tolist()


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_quotas_fill_the_block(weights: list[float]) -> None:
    places = quotas(weights)
    assert places.sum() == BLOCK
    assert places.min() >= 1
    assert np.abs(places / BLOCK - np.array(weights) / sum(weights)).max() < 1e-3


@pytest.mark.slow
@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=6), st.sampled_from([0, 7, 1024]))
def test_the_parts_of_a_mixture_hold_out_what_is_wanted_or_all_they_may(part_sizes: list[int], wanted: int) -> None:
    if not sum(part_sizes):
        return
    held = held_out_of_parts(part_sizes, wanted)
    assert sum(held) == min(wanted, sum(size // 10 for size in part_sizes))
    for own, size in zip(held, part_sizes, strict=True):
        assert own <= size // 10


def test_the_held_out_pairs_of_a_mixture_are_1024_whatever_its_parts() -> None:
    assert held_out_of_parts([3_318_333, 10_968_539], 1024) == [238, 786]
    assert sum(held_out_of_parts([3_318_333, 10_968_539, 12_000_000], 1024)) == 1024


@given(sizes.filter(lambda found: sum(found) >= 100), st.integers(1, 30))
def test_whole_shards_are_held_out_where_shards_are_downloaded(shard_sizes: list[int], wanted: int) -> None:
    order = Order(np.array(shard_sizes), seed=3, num_held_out=wanted, whole_shards=True)
    held, ends = order.held_out(), np.cumsum(shard_sizes)
    assert len(held) == min(wanted, sum(shard_sizes) // 10)
    counts = np.bincount(np.searchsorted(ends, held, side="right"), minlength=len(shard_sizes))
    assert sum((counts > 0) & (counts < np.array(shard_sizes))) <= 1  # at most one shard is shared with training
    seen = np.sort(np.concatenate([ids_of(order, 0), held]))
    assert seen.tolist() == list(range(sum(shard_sizes)))
