"""Batches of training and validation pairs, made by loader processes.

Positions are cut into steps of the global batch, steps into one slice per rank, and slices into pieces that one loader
process makes; none of these cuts changes which sample is at a position.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_lightning.child_process import begin_worker
from clip_lightning.data.bad_samples import BadSampleLog
from clip_lightning.data.batches import Batch, BatchMaker, Made
from clip_lightning.data.layouts.layout import Ids
from clip_lightning.data.order.order import TrainingOrder
from clip_lightning.data.order.skip_windows import SkipWindow, positions_of
from clip_lightning.data.remote.prefetch import Prefetcher
from clip_lightning.errors import DataError, UserError

LARGEST_PIECE = 1024  # samples that one process makes at a time; more would only wait in memory
PREFETCHED_PIECES = 2  # that each loader process has ready
LOOK_SECONDS = 30.0  # between messages about a batch that does not arrive
# Without a batch and without a download, after which the run ends: before the other ranks' collectives time out.
PATIENCE_SECONDS = 480.0
_SHOWN = 4  # shards that a message names

_log = logging.getLogger(__name__)


class TrainingLoader:
    """Iterates over the remaining steps: this rank's slice of each, in one `Batch`.

    Bad samples are counted here, in the main process, and too many of them raise `DataError`.
    """

    def __init__(
        self,
        pieces: "TrainingPieces",
        num_steps: int,
        order: TrainingOrder,
        *,
        workers: int,
        ahead: int,
        bad_samples: BadSampleLog,
        num_before: int = 0,
    ) -> None:
        """Args.

        pieces: what this rank trains on.
        workers: loader processes; 0 makes batches in this process.
        ahead: shards of remote data that are downloaded at a time.
        bad_samples: where the bad samples of this rank are counted.
        num_before: steps before these that count as part of the same epoch.
        """
        self.num_before = num_before
        self.pieces, self.num_steps, self.order = pieces, num_steps, order
        self.workers, self.ahead, self.bad_samples = workers, ahead, bad_samples

    def __len__(self) -> int:
        """Steps that are left, after those of the same epoch that came before."""
        return self.num_before + self.num_steps

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the place in the run is in the state of the data module, which makes a loader that begins there."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore; Lightning takes the method as a sign that a resume is exact."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this rank."""
        pieces = self.pieces
        per_step = pieces.per_step
        loader = _loader(pieces, range(self.num_steps * per_step), self.workers)
        with Prefetcher(pieces.maker.layout, self.order, self.ahead) as prefetcher:
            prefetcher.reached(int(positions_of(np.array([pieces.start]), pieces.skip_windows)[0]))
            made: list[Batch] = []
            handed = 0
            for piece in self._arrived(loader):
                if isinstance(piece, UserError):
                    raise piece
                handed += len(piece.batch.positions)
                prefetcher.reached(int(piece.batch.positions[-1]))
                self.bad_samples.note(piece.bad, handed)
                made.append(piece.batch)
                if len(made) == per_step:
                    yield joined(made, pieces.maker.tokenizer.pad_id)
                    made = []

    def _arrived(self, loader: DataLoader[Any]) -> Iterator[Made | UserError]:
        """The pieces of a loader.

        Raises: DataError where none arrives for `PATIENCE_SECONDS`, in which nothing was downloaded either.
        """
        pieces, count, since = iter(loader), 0, time.time()
        while True:
            try:
                piece = next(pieces)
            except StopIteration:
                return
            except RuntimeError as error:  # torch has no class of its own for this; the loader can be asked again
                if "timed out after" not in str(error):
                    raise
                waited = time.time() - max(since, self.pieces.maker.layout.newest_download())
                shards = ", ".join(self.pieces.shards_of(count))
                if waited > PATIENCE_SECONDS:
                    raise DataError(
                        f"the loader processes have made no batch for {time.time() - since:.0f} s, and nothing was "
                        f"downloaded for {waited:.0f} s; the batch needs {shards}."
                    ) from error
                _log.warning("waiting for a batch for %.0f s; it needs %s", time.time() - since, shards)
                continue
            count, since = count + 1, time.time()
            yield piece


class TrainingPieces(Dataset[Made | UserError]):
    """Piece k of what one rank trains on; an error that the user can fix is passed on like a batch."""

    def __init__(
        self,
        maker: BatchMaker,
        start: int,
        global_batch: int,
        rank: int,
        world: int,
        skip_windows: tuple[SkipWindow, ...] = (),
    ) -> None:
        """Args: start: samples of the run before piece 0. skip_windows: windows of positions that are skipped."""
        self.maker, self.start, self.global_batch, self.skip_windows = maker, start, global_batch, skip_windows
        self.share = global_batch // world
        self.first = rank * self.share
        self.per_step = -(-self.share // LARGEST_PIECE)

    def __getitem__(self, index: int) -> Made | UserError:
        """Piece `index % per_step` of step `index // per_step`, counted from `start`."""
        samples = self._samples(index)
        try:
            return self.maker.make(positions_of(samples, self.skip_windows), int(samples[0]))
        except UserError as error:
            return error

    def shards_of(self, index: int) -> list[str]:
        """Names of the first shards that piece `index` needs."""
        assert self.maker.order is not None
        located = self.maker.order.locate(positions_of(self._samples(index), self.skip_windows))
        names = (self.maker.layout.shard_of(sample_id) for sample_id in located.sample_ids.tolist())
        return list(dict.fromkeys(names))[:_SHOWN]

    def _samples(self, index: int) -> Ids:
        """How many samples the run has seen before each of piece `index`, int64 [b]."""
        step, piece = divmod(index, self.per_step)
        begin, end = (self.share * part // self.per_step for part in (piece, piece + 1))
        first = self.start + step * self.global_batch + self.first
        return np.arange(first + begin, first + end, dtype=np.int64)


class ValidationPieces(Dataset[Batch]):
    """The batches of validation pairs at fixed positions; bad samples are counted, and their rows marked."""

    def __init__(self, maker: BatchMaker, sample_ids: Ids, pieces: list[Ids], bad_samples: BadSampleLog) -> None:
        """Args.

        sample_ids: of all validation pairs, int64 [n].
        pieces: positions of each batch, int64 [b].
        bad_samples: where they are counted.
        """
        self.maker, self.sample_ids, self.pieces, self.bad_samples = maker, sample_ids, pieces, bad_samples

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.pieces)

    def __getitem__(self, index: int) -> Batch:
        """Batch `index`."""
        positions = self.pieces[index]
        made = self.maker.make_validation(self.sample_ids[positions], positions)
        self.bad_samples.note(made.bad, len(self.sample_ids))
        return made.batch


def joined(batches: list[Batch], pad_id: int) -> Batch:
    """One batch of several, their captions padded to the longest; in pinned memory where the parts are, since a copy
    of other memory to the GPU makes the host wait.
    """
    if len(batches) == 1:
        return batches[0]
    longest = max(batch.tokens.shape[1] for batch in batches)
    columns = list(zip(*batches, strict=True))
    tokens = [torch.nn.functional.pad(t, (0, longest - t.shape[1]), value=pad_id) for t in columns[1]]
    is_pinned = batches[0].images.is_pinned()

    def rows(parts: Iterable[Tensor]) -> Tensor:
        whole = torch.cat(tuple(parts))
        return whole.pin_memory() if is_pinned else whole

    images, lengths, sample_ids, positions = (rows(columns[k]) for k in (0, 2, 3, 4))
    return Batch(images, rows(tokens), lengths, sample_ids, positions, sum(columns[5]))


def _loader(pieces: TrainingPieces, indices: range, workers: int) -> DataLoader[Any]:
    settings: dict[str, Any] = (
        {
            "prefetch_factor": PREFETCHED_PIECES,
            "worker_init_fn": partial(_begin_worker, os.getpid()),
            "timeout": LOOK_SECONDS,
        }
        if workers
        else {}
    )
    return DataLoader(
        pieces,
        batch_size=None,
        sampler=indices,
        num_workers=min(workers, len(indices)),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the loader draws a seed for its workers; from torch's own it would show
        **settings if len(indices) else {},
    )


def _begin_worker(parent: int, _: int) -> None:
    begin_worker(parent)
