"""Several data sets as one, drawn by weight: `data=mixture data.mixture={cc3m: 0.7, redcaps: 0.3}`.

The run is cut into blocks of 10,000 positions. In each block every part has the same number of places, its weight
rounded to the block, and a permutation that is a pure function of (seed, block) chooses these places. So the
number of samples of a part before a position is known without counting, and the state remains one integer. Each part
runs through its own epochs in its own order.
"""

import heapq
from collections.abc import Iterator

import numpy as np

from clip_lightning.config import parts as config_parts
from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.layout import (
    BadSample,
    Ids,
    JoinedProblems,
    Layout,
    Problem,
    RawSample,
    build_layout,
    digest,
)
from clip_lightning.data.order.counter_rng import MIXTURE, hashed, permuted
from clip_lightning.data.order.excluding import Excluding, remaining
from clip_lightning.data.order.order import Located, Order, TrainingOrder, most_held_out
from clip_lightning.errors import DataError

BLOCK = 10_000


class Mixture(Layout):
    """The samples of several layouts, one after the other."""

    def __init__(self, parts: dict[str, Layout], weights: list[float]) -> None:
        """Args: weights: of each part, in any unit."""
        self.parts, self.weights = parts, weights
        self._layouts = list(parts.values())
        self.starts = np.cumsum([0] + [layout.num_samples for layout in self._layouts])
        self.num_samples = int(self.starts[-1])
        self.shard_sizes = np.concatenate([layout.shard_sizes for layout in self._layouts])
        self._shard_starts = np.cumsum([0] + [len(layout.shard_sizes) for layout in self._layouts])
        self.problems = JoinedProblems([layout.problems for layout in self._layouts])
        self.remote = any(layout.remote for layout in self._layouts)
        self.largest_download = max(layout.largest_download for layout in self._layouts)

    def read(self, sample_id: int) -> RawSample:
        """Sample `sample_id` of the part it belongs to."""
        layout, own_id = self._part(sample_id)
        return layout.read(own_id)

    def read_many(self, sample_ids: Ids) -> list[RawSample | BadSample]:
        """The samples of int64 [n]; each part reads its own together."""
        part = np.searchsorted(self.starts, sample_ids, side="right") - 1
        samples: dict[int, RawSample | BadSample] = {}
        for number in np.unique(part).tolist():
            (rows,) = np.nonzero(part == number)
            read = self._layouts[number].read_many(sample_ids[rows] - self.starts[number])
            samples.update(zip(rows.tolist(), read, strict=True))
        return [samples[row] for row in range(len(sample_ids))]

    def captions(self, sample_id: int) -> list[str]:
        """Only the captions of a sample."""
        layout, own_id = self._part(sample_id)
        return layout.captions(own_id)

    def name_of(self, sample_id: int) -> Problem:
        """The file and the name of the sample in its part."""
        layout, own_id = self._part(sample_id)
        return layout.name_of(own_id)

    def shard_of(self, sample_id: int) -> str:
        """The shard of the part that the sample is of."""
        layout, own_id = self._part(sample_id)
        return layout.shard_of(own_id)

    def newest_download(self) -> float:
        """When the cache of a part last grew."""
        return max(layout.newest_download() for layout in self._layouts)

    def fingerprint(self) -> str:
        """Changes when a part changes; weights are the config's."""
        return digest(*(f"{name} {layout.fingerprint()}" for name, layout in self.parts.items()))

    def prefetch(self, shard: int) -> None:
        """Fetches a shard of a part."""
        part = int(np.searchsorted(self._shard_starts, shard, side="right")) - 1
        self._layouts[part].prefetch(shard - int(self._shard_starts[part]))

    def _part(self, sample_id: int) -> tuple[Layout, int]:
        part = int(np.searchsorted(self.starts, sample_id, side="right")) - 1
        return self._layouts[part], sample_id - int(self.starts[part])


class MixtureOrder:
    """The order of a mixture.

    Attributes:
        num_samples: training samples of all parts together, what an "epoch" of a mixture means in a duration.
    """

    def __init__(self, orders: list[Order], starts: Ids, weights: list[float], seed: int) -> None:
        """Args: starts: int64 [parts], the first sample id of each part. weights: of each part, in any unit."""
        self.orders, self.starts, self.seed = orders, starts, seed
        self.num_samples = sum(order.num_samples for order in orders)
        self.quotas = quotas(weights)
        self._ends = np.cumsum(self.quotas)

    def locate(self, positions: Ids) -> Located:
        """The samples at `positions`, int64 [n]; their epochs are those of their part."""
        block, place = np.divmod(positions, BLOCK)
        place = permuted(place, np.array([BLOCK]), hashed(MIXTURE, self.seed, block))
        part = np.searchsorted(self._ends, place, side="right")
        own = block * self.quotas[part] + place - (self._ends - self.quotas)[part]
        sample_ids, epochs = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(part).tolist():
            here = part == number
            located = self.orders[number].locate(own[here])
            sample_ids[here], epochs[here] = located.sample_ids + self.starts[number], located.epochs
        return Located(sample_ids, epochs)

    def substitute(self, sample_id: int, epoch: int, attempt: int) -> int:
        """The sample of the same part that replaces a bad one."""
        part = int(np.searchsorted(self.starts, sample_id, side="right")) - 1
        start = int(self.starts[part])
        return start + self.orders[part].substitute(sample_id - start, epoch, attempt)

    def training_ids(self, index: Ids) -> Ids:
        """The ids of the training samples numbered `index`, part after part."""
        ends = np.cumsum([order.num_samples for order in self.orders])
        part = np.searchsorted(ends, index, side="right")
        ids = np.empty_like(index)
        for number in np.unique(part).tolist():
            order, here = self.orders[number], part == number
            ids[here] = order.training_ids(index[here] - ends[number] + order.num_samples) + self.starts[number]
        return ids

    def held_out(self) -> Ids:
        """The ids that are never trained on, part after part, int64 [n]."""
        pairs = zip(self.orders, self.starts, strict=True)
        return np.concatenate([order.held_out() + start for order, start in pairs])

    def digest(self) -> str:
        """16 hex digits that change with the order of a part, or with the shares of the parts."""
        return digest(self.quotas.astype("<i8").tobytes(), *(order.digest() for order in self.orders))

    def shards_from(self, position: int) -> Iterator[tuple[int, int]]:
        """The shards in the order in which they are needed, each with about the position where its window begins."""
        block = position // BLOCK
        first_shard, parts = 0, []
        for order, quota in zip(self.orders, self.quotas.tolist(), strict=True):
            parts.append(_shifted(order.shards_from(block * quota), first_shard, BLOCK / quota))
            first_shard += order.num_shards
        return heapq.merge(*parts)


def quotas(weights: list[float]) -> Ids:
    """Places of each part in a block, int64 [parts]: at least one, BLOCK in all, nearest to the weights."""
    share = np.array(weights) / sum(weights) * (BLOCK - len(weights))
    places = np.floor(share).astype(np.int64)
    rest = BLOCK - len(weights) - int(places.sum())
    places[np.argsort(places - share, kind="stable")[:rest]] += 1
    return places + 1


def held_out_of_parts(sizes: list[int], wanted: int) -> list[int]:
    """Samples that each part holds out: `wanted` in all, or as many as the parts may hold out, by their sizes.

    What rounding down leaves goes to the parts with the largest remainders.
    """
    most = [most_held_out(size) for size in sizes]
    held = [min(wanted * size // sum(sizes), limit) for size, limit in zip(sizes, most, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda part: -(wanted * sizes[part] % sum(sizes)))
    while (missing := min(wanted, sum(most)) - sum(held)) > 0:
        for part in [part for part in by_remainder if held[part] < most[part]][:missing]:
            held[part] += 1
    return held


def build_mixture(config: DataConfig) -> Mixture:
    """The data options that `data.mixture` names, each with its own settings, which `data.parts` holds.

    Raises: DataError where the data of one is missing.
    """
    if missing := config.mixture.keys() - config.parts.keys():
        raise DataError(f"data.parts lacks {', '.join(sorted(missing))}; load the config with load_config.")
    parts = {name: build_layout(config_parts.typed(config.parts[name])) for name in config.mixture}
    return Mixture(parts, list(config.mixture.values()))


def build_order(
    layout: Layout, config: DataConfig, *, seed: int, num_held_out: int, limit: int, excluded: Ids | None = None
) -> TrainingOrder:
    """The order of a layout, or of a mixture of layouts.

    Args:
        num_held_out: samples kept from training; of a mixture, shared by the parts by their sizes.
        limit: if > 0, only the first so many training samples of each part.
        excluded: ids of samples that are left out, int64 [n], ascending, each once.
    """
    if excluded is not None and len(excluded):
        sizes = remaining(layout.shard_sizes, excluded)
        rest = _build_order(layout, sizes, config, seed=seed, num_held_out=num_held_out, limit=limit)
        return Excluding(rest, excluded)
    return _build_order(layout, layout.shard_sizes, config, seed=seed, num_held_out=num_held_out, limit=limit)


def _build_order(
    layout: Layout, shard_sizes: Ids, config: DataConfig, *, seed: int, num_held_out: int, limit: int
) -> Order | MixtureOrder:
    """The order of samples in shards of these sizes, which are those of the layout or smaller."""

    def order(one: Layout, sizes: Ids, own_seed: int, held: int) -> Order:
        return Order(
            sizes,
            seed=own_seed,
            num_held_out=held,
            window_shards=config.window_shards or one.window_shards,
            resampled=config.resampled,
            limit=limit,
            whole_shards=one.remote,
        )

    if not isinstance(layout, Mixture):
        return order(layout, shard_sizes, seed, num_held_out)
    ends = np.cumsum([len(part.shard_sizes) for part in layout.parts.values()])
    sizes = np.split(shard_sizes, ends[:-1])
    if empty := [name for name, own in zip(layout.parts, sizes, strict=True) if not own.sum()]:
        raise DataError(f"data.exclude leaves no sample of {', '.join(empty)}; remove it from data.mixture.")
    totals = [int(own.sum()) for own in sizes]
    held = held_out_of_parts(totals, num_held_out)
    orders = [
        order(part, sizes[number], int(hashed(MIXTURE, seed, number)[0] >> np.uint64(1)), held[number])
        for number, part in enumerate(layout.parts.values())
    ]
    return MixtureOrder(orders, np.cumsum([0, *totals[:-1]]), layout.weights, seed)


def _shifted(shards: Iterator[tuple[int, int]], first_shard: int, stretch: float) -> Iterator[tuple[int, int]]:
    for begin, shard in shards:
        yield int(begin * stretch), first_shard + shard
