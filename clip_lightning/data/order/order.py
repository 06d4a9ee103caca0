"""Which sample is at position i of a run: a pure function of (seed, epoch, i).

In each epoch the shards are permuted, cut into windows of `window_shards`, and the samples of a window are permuted
among themselves; every sample that is not held out comes exactly once. Ranks, workers and steps
only split the positions. Kept in memory are the cumulative sizes of the shards, nothing per sample. Positions run
on over the epochs: epoch e holds positions e * num_samples .. (e + 1) * num_samples - 1.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from clip_lightning.data.layouts.layout import Ids, digest
from clip_lightning.data.order.counter_rng import HELD_OUT, RESAMPLE, SHARDS, SUBSTITUTE, WINDOW, hashed, permuted

ATTEMPTS_IN_SHARD = 8  # substitutes come from the bad sample's own shard first: it is open already


def most_held_out(num_samples: int) -> int:
    """How many of a data set's samples may be kept from training."""
    return num_samples // 10


class Located(NamedTuple):
    """The samples at some positions: ids and the epoch each is seen in, int64 [n]."""

    sample_ids: Ids
    epochs: Ids


class SampleOrder(Protocol):
    """Which sample is at a position."""

    num_samples: int

    def locate(self, positions: Ids) -> Located:
        """The samples at `positions`, int64 [n]."""

    def substitute(self, sample_id: int, epoch: int, attempt: int) -> int:
        """The substitute of a bad sample; attempt 0, 1, ... until one is good."""


class TrainingOrder(SampleOrder, Protocol):
    """An order of training samples, with those held out and the shards it will need."""

    def training_ids(self, index: Ids) -> Ids:
        """The ids of the training samples numbered `index` in the data's own order, int64 [n]."""

    def held_out(self) -> Ids:
        """The ids that are never trained on, in a fixed order, int64 [n]."""

    def digest(self) -> str:
        """16 hex digits that change with the samples that are trained on and with how shards are mixed.

        Both follow from where the data is, if the config does not set them: a run must not resume with others.
        """

    def shards_from(self, position: int) -> Iterator[tuple[int, int]]:
        """The shards in the order in which they are needed, endless, from the window at `position` on.

        Each comes with the position where its window begins.
        """


class _Epoch(NamedTuple):
    """The shards of one epoch, permuted, and the first position of each shard and of each window; ends appended."""

    shards: Ids
    starts: Ids
    windows: Ids


class Order:
    """The order of one data set.

    Attributes:
        num_samples: positions in an epoch.
    """

    def __init__(
        self,
        shard_sizes: Ids,
        *,
        seed: int,
        num_held_out: int = 0,
        window_shards: int | None = None,
        resampled: bool = False,
        limit: int = 0,
        whole_shards: bool = False,
    ) -> None:
        """Args:
        shard_sizes: int64 [shards].
        num_held_out: samples kept from training, at most a tenth of all: from the tail of every shard in proportion
            to its size.
        whole_shards: hold out a few complete shards (and the tail of one) instead, for shards that are downloaded.
        window_shards: shards mixed at a time; None is all.
        resampled: draw with replacement inside a window, instead of each sample once.
        limit: if > 0, only the first so many training samples exist.
        """
        ends = np.cumsum(shard_sizes, dtype=np.int64)
        self._id_starts = ends - shard_sizes
        total = int(ends[-1]) if len(ends) else 0
        held = min(num_held_out, most_held_out(total))
        if whole_shards:
            first = np.argsort(hashed(HELD_OUT, np.arange(len(shard_sizes))), kind="stable")
            before = np.cumsum(shard_sizes[first]) - shard_sizes[first]
            self._held = np.empty_like(ends)
            self._held[first] = np.clip(held - before, 0, shard_sizes[first])
        else:
            self._held = ends * held // max(total, 1) - self._id_starts * held // max(total, 1)
        self._sizes = shard_sizes - self._held
        if limit:
            before = np.cumsum(self._sizes) - self._sizes
            self._sizes = np.clip(limit - before, 0, self._sizes)
        self._ends = np.cumsum(self._sizes)
        self._id_ends = ends
        self.num_samples = int(self._ends[-1]) if len(ends) else 0
        self.num_shards = len(shard_sizes)
        self.seed, self.resampled = seed, resampled
        self.window_shards = max(1, min(window_shards or len(shard_sizes), len(shard_sizes)))
        self._epochs: dict[int, _Epoch] = {}

    def locate(self, positions: Ids) -> Located:
        """The samples at `positions`, int64 [n] in any order."""
        epochs, within = np.divmod(positions, self.num_samples)
        sample_ids = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            sample_ids[here] = self._locate_in_epoch(epoch, within[here])
        return Located(sample_ids, epochs)

    def _locate_in_epoch(self, epoch: int, index: Ids) -> Ids:
        plan = self._plan(epoch)
        window = np.searchsorted(plan.windows, index, side="right") - 1
        start = plan.windows[window]
        size = plan.windows[window + 1] - start
        if self.resampled:
            drawn = hashed(RESAMPLE, self.seed, epoch, index) % size.astype(np.uint64)
            inside = drawn.astype(np.int64)
        else:
            inside = permuted(index - start, size, hashed(WINDOW, self.seed, epoch, window))
        slot = np.searchsorted(plan.starts, start + inside, side="right") - 1
        return self._id_starts[plan.shards[slot]] + (start + inside - plan.starts[slot])

    def _plan(self, epoch: int) -> _Epoch:
        """The epoch's shards; computed once, and kept for the two latest."""
        if epoch not in self._epochs:
            key = hashed(SHARDS, self.seed, epoch, np.arange(len(self._sizes)))
            shards = np.argsort(key, kind="stable")
            starts = np.concatenate([[0], np.cumsum(self._sizes[shards])])
            # A window without a sample (all its shards empty) has a start equal to the next one's and is never found.
            windows = np.append(starts[:-1][:: self.window_shards], starts[-1])
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = _Epoch(shards, starts, windows)
        return self._epochs[epoch]

    def substitute(self, sample_id: int, epoch: int, attempt: int) -> int:
        """The substitute of a bad sample, the same in every process.

        The first attempts stay in the bad sample's shard, later ones draw from all training samples.
        """
        word = int(hashed(SUBSTITUTE, self.seed, epoch, sample_id, attempt)[0])
        shard = int(np.searchsorted(self._id_ends, sample_id, side="right"))
        if attempt < ATTEMPTS_IN_SHARD and self._sizes[shard] > 1:
            return int(self._id_starts[shard]) + word % int(self._sizes[shard])
        index = word % self.num_samples
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return int(self._id_starts[shard]) + index - int(self._ends[shard] - self._sizes[shard])

    def training_ids(self, index: Ids) -> Ids:
        """The ids of the training samples numbered `index` (int64 [n], below num_samples) in the data's own order."""
        shard = np.searchsorted(self._ends, index, side="right")
        return self._id_starts[shard] + index - (self._ends - self._sizes)[shard]

    def held_out(self) -> Ids:
        """The ids that are never trained on: the tails of shards, in the data's own order, int64 [n]."""
        shards = np.repeat(np.arange(len(self._held)), self._held)
        nth = np.arange(len(shards)) - np.repeat(np.cumsum(self._held) - self._held, self._held)
        return (self._id_ends - self._held)[shards] + nth

    def digest(self) -> str:
        """16 hex digits that change with the samples that are trained on and with how shards are mixed."""
        return digest(self._sizes.astype("<i8").tobytes(), f"{self.window_shards} {self.resampled}")

    def shards_from(self, position: int) -> Iterator[tuple[int, int]]:
        """The shards in the order in which they are needed, each with the position where its window begins."""
        epoch, index = divmod(position, self.num_samples)
        while True:
            plan = self._plan(epoch)
            window = int(np.searchsorted(plan.windows, index, side="right")) - 1
            for slot in range(window * self.window_shards, len(plan.shards)):
                if self._sizes[shard := int(plan.shards[slot])]:
                    yield epoch * self.num_samples + int(plan.windows[slot // self.window_shards]), shard
            epoch, index = epoch + 1, 0
