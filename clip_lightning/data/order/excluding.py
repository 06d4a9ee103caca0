"""An order without the samples that `data.exclude` lists: they are neither trained on nor held out.

The samples that remain are numbered without gaps and ordered like any data of that size, so that each comes once an
epoch and a position holds the same sample for every rank and after every restart. Kept in memory are the ids that are
left out.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from clip_lightning.config import exclusion
from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.layout import BadSample, Ids, Layout, digest
from clip_lightning.data.order.order import Located, TrainingOrder
from clip_lightning.errors import DataError

_READ_AT_ONCE, _THREADS = 1024, 8


class Excluding:
    """The samples of another order by their ids in the whole data.

    Attributes:
        num_samples: positions in an epoch.
    """

    def __init__(self, order: TrainingOrder, excluded: Ids) -> None:
        """Args:
        order: of the remaining samples, numbered without gaps.
        excluded: ids in the whole data, int64 [n], ascending, each once.
        """
        self.order, self.excluded = order, excluded
        self.num_samples = order.num_samples
        self._remaining_before = excluded - np.arange(len(excluded))

    def _ids(self, numbers: Ids) -> Ids:
        """The ids of remaining samples by their numbers."""
        return numbers + np.searchsorted(self._remaining_before, numbers, side="right")

    def locate(self, positions: Ids) -> Located:
        """The samples at `positions`, int64 [n] in any order."""
        numbers, epochs = self.order.locate(positions)
        return Located(self._ids(numbers), epochs)

    def substitute(self, sample_id: int, epoch: int, attempt: int) -> int:
        """The substitute of a bad sample, which remains itself."""
        number = sample_id - int(np.searchsorted(self.excluded, sample_id))
        return int(self._ids(np.array([self.order.substitute(number, epoch, attempt)]))[0])

    def training_ids(self, index: Ids) -> Ids:
        """The ids of the training samples numbered `index`, int64 [n]."""
        return self._ids(self.order.training_ids(index))

    def held_out(self) -> Ids:
        """The ids of the validation pairs, int64 [n]."""
        return self._ids(self.order.held_out())

    def digest(self) -> str:
        """16 hex digits that change with the samples that are trained on and with how shards are mixed."""
        return digest(self.order.digest(), self.excluded.astype("<i8").tobytes())

    def shards_from(self, position: int) -> Iterator[tuple[int, int]]:
        """The shards in the order in which they are needed; a shard of which no sample remains is left out."""
        return self.order.shards_from(position)


def remaining(shard_sizes: Ids, excluded: Ids) -> Ids:
    """How many samples of each shard remain, int64 [shards]."""
    shards = np.searchsorted(np.cumsum(shard_sizes), excluded, side="right")
    return shard_sizes - np.bincount(shards, minlength=len(shard_sizes))


def excluded_ids(layout: Layout, data: DataConfig) -> Ids:
    """The ids that `data.exclude` leaves out, int64 [n], ascending; none without it.

    Hashes are looked for by one pass over all images, on every rank; of data that is downloaded only ids are taken.

    Raises: DataError where the list is another one than at the start of the run, or counts other data.
    """
    if data.exclude is None:
        return np.empty(0, np.int64)
    listed, named = exclusion.read(data.exclude), f"data.exclude={data.exclude}"
    if data.excluded and listed.digest != data.excluded:
        raise DataError(
            f"{named}: the list has changed since the run began ({data.excluded} -> {listed.digest}); put the earlier "
            "one back, or start again from the command line, where another list makes another run."
        )
    if listed.ids and listed.fingerprint and listed.fingerprint != layout.fingerprint():
        raise DataError(
            f"{named} counts the samples of other data (fingerprint {listed.fingerprint}; this data has "
            f"{layout.fingerprint()}); make the list again for this data."
        )
    if listed.ids and listed.ids[-1] >= layout.num_samples:
        raise DataError(
            f"{named} names sample {listed.ids[-1]:,}, and the data has {layout.num_samples:,}, counted from 0; make "
            "the list again for this data."
        )
    found = np.array(listed.ids, dtype=np.int64)
    if listed.hashes:
        if layout.remote:
            raise DataError(
                f"{named} has hashes, for which every rank would download all images; write the list as sample ids."
            )
        found = np.union1d(found, _ids_of_hashes(layout, set(listed.hashes)))
    if len(found) == layout.num_samples:
        raise DataError(f"{named} names all samples, and nothing remains to train on; shorten it.")
    return found


def image_hash(image: "bytes | np.ndarray") -> str:
    """SHA-256 of an image as the layout reads it, 64 hex digits."""
    return hashlib.sha256(image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()).hexdigest()


def _ids_of_hashes(layout: Layout, hashes: set[str]) -> Ids:
    def search(first: int) -> list[int]:
        sample_ids = np.arange(first, min(first + _READ_AT_ONCE, layout.num_samples), dtype=np.int64)
        samples = zip(sample_ids.tolist(), layout.read_many(sample_ids), strict=True)
        return [k for k, raw in samples if not isinstance(raw, BadSample) and image_hash(raw.image) in hashes]

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(search, range(0, layout.num_samples, _READ_AT_ONCE))
        return np.array([k for part in parts for k in part], dtype=np.int64)
