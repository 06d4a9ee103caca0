"""Batches of training and validation pairs, made by loader processes.

Positions are cut into steps of the global batch, steps into one slice per rank, and slices into pieces that one loader
process makes; none of these cuts changes which sample is at a position.
"""

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from clip_lightning.data.bad_samples import BadSampleLog
from clip_lightning.data.batches import Batch, BatchMaker, Made
from clip_lightning.data.layouts.layout import Ids
from clip_lightning.data.order.order import TrainingOrder
from clip_lightning.data.order.skip_windows import SkipWindow, positions_of
from clip_lightning.data.remote.prefetch import Prefetcher
from clip_lightning.errors import UserError

LARGEST_PIECE = 1024  # samples that one process makes at a time; more would only wait in memory
PREFETCHED_PIECES = 2  # that each loader process has ready


class TrainingLoader:
    """Iterates over the steps that are left: this rank's slice of each, in one `Batch`.

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
        """Nothing to restore; that this method exists tells Lightning that a resume is exact."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this rank."""
        pieces = self.pieces
        per_step = pieces.per_step
        loader = _loader(pieces, range(self.num_steps * per_step), self.workers)
        with Prefetcher(pieces.maker.layout, self.order, self.ahead) as prefetcher:
            prefetcher.reached(int(positions_of(np.array([pieces.start]), pieces.skip_windows)[0]))
            made: list[Batch] = []
            handed = 0
            for piece in loader:
                if isinstance(piece, UserError):
                    raise piece
                handed += len(piece.batch.positions)
                prefetcher.reached(int(piece.batch.positions[-1]))
                self.bad_samples.note(piece.bad, handed)
                made.append(piece.batch)
                if len(made) == per_step:
                    yield joined(made, pieces.maker.tokenizer.pad_id)
                    made = []


class TrainingPieces(Dataset[Made | UserError]):
    """Piece k of what one rank trains on; an error that the user can mend is handed over like a batch."""

    def __init__(
        self,
        maker: BatchMaker,
        start: int,
        global_batch: int,
        rank: int,
        world: int,
        skip_windows: tuple[SkipWindow, ...] = (),
    ) -> None:
        """Args: start: samples of the run before piece 0. skip_windows: windows of positions that are left out."""
        self.maker, self.start, self.global_batch, self.skip_windows = maker, start, global_batch, skip_windows
        self.share = global_batch // world
        self.first = rank * self.share
        self.per_step = -(-self.share // LARGEST_PIECE)

    def __getitem__(self, index: int) -> Made | UserError:
        """Piece `index % per_step` of step `index // per_step`, counted from `start`."""
        step, piece = divmod(index, self.per_step)
        begin, end = (self.share * part // self.per_step for part in (piece, piece + 1))
        first = self.start + step * self.global_batch + self.first
        try:
            samples = np.arange(first + begin, first + end, dtype=np.int64)
            return self.maker.make(positions_of(samples, self.skip_windows), int(samples[0]))
        except UserError as error:
            return error


class ValidationPieces(Dataset[Batch]):
    """The batches of validation pairs at fixed positions."""

    def __init__(self, maker: BatchMaker, pieces: list[Ids]) -> None:
        """Args: pieces: positions of each batch, int64 [b]."""
        self.maker, self.pieces = maker, pieces

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.pieces)

    def __getitem__(self, index: int) -> Batch:
        """Batch `index`."""
        return self.maker.make(self.pieces[index]).batch


def joined(batches: list[Batch], pad_id: int) -> Batch:
    """One batch of several, their captions padded to the longest."""
    if len(batches) == 1:
        return batches[0]
    longest = max(batch.tokens.shape[1] for batch in batches)
    columns = list(zip(*batches, strict=True))
    tokens = [torch.nn.functional.pad(t, (0, longest - t.shape[1]), value=pad_id) for t in columns[1]]
    images, lengths, sample_ids, positions = (torch.cat(columns[k]) for k in (0, 2, 3, 4))
    return Batch(images, torch.cat(tokens), lengths, sample_ids, positions, sum(columns[5]))


def _loader(pieces: TrainingPieces, indices: range, workers: int) -> DataLoader[Any]:
    settings: dict[str, Any] = (
        {"prefetch_factor": PREFETCHED_PIECES, "worker_init_fn": _begin_worker} if workers else {}
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


def _begin_worker(_: int) -> None:
    """Signals to the whole job are the main process's to act on: it still needs its batches for a clean end.

    The first SIGTERM is passed over as well; a second one, from a main process that leaves, ends the worker.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
