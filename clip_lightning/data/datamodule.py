"""The data of a run as Lightning takes it: batches of training pairs from any point of the run on, and held-out pairs.

The whole state is `samples_seen`, and the windows that a run passes over. Positions are cut into steps of the global
batch, steps into one slice per rank, and slices into pieces that one loader process makes; none of these cuts changes
what stands at a position.
"""

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from clip_lightning.config.phases import Phase
from clip_lightning.config.schema import DataConfig
from clip_lightning.data.bad_samples import BadSampleLog
from clip_lightning.data.batches import Batch, BatchMaker, FixedOrder, Made
from clip_lightning.data.layouts.layout import Ids, build_layout
from clip_lightning.data.layouts.mixture import build_order
from clip_lightning.data.order.order import BucketedOrder
from clip_lightning.data.order.skip_windows import SkipWindow, positions_of
from clip_lightning.data.remote.prefetch import Prefetcher
from clip_lightning.distributed import rank_and_world
from clip_lightning.errors import DataError, UserError
from clip_lightning.tokenizer import Tokenizer

__all__ = ["Batch", "ContrastiveDataModule"]

LARGEST_PIECE = 1024  # samples that one process makes at a time; more would only wait in memory
PREFETCHED_PIECES = 2  # that each loader process has ready
VALIDATION_BATCH = 256


class ContrastiveDataModule(LightningDataModule):
    """Image-text pairs.

    Attributes:
        layout: the data.
        order: what stands at which position.
        num_samples: training pairs in an epoch.
        held_out: int64 [n], ids of the pairs that are never trained on.
        fingerprint: 16 hex digits that change when the data changes.
        tokenizer: must be set before a loader is asked for.
        samples_seen: where the training loader begins; set it to resume.
        phases: sizes of training images and texts by samples seen; set it where a run has any.
        skip_windows: windows of positions that the training loader leaves out.
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        image_size: int,
        tokenizer: Tokenizer | None,
        seed: int,
        global_batch: int,
        total_samples: int,
        workers: int,
        overfit_samples: int = 0,
    ) -> None:
        """Indexes the data where that is not yet done.

        Args:
            global_batch: pairs per step over all ranks.
            total_samples: pairs in the run.
            workers: loader processes of this rank; 0 makes batches in this process.
            overfit_samples: if > 0, the run sees only the first so many training samples.
        Raises: DataError where the data is missing, empty, or more damaged than `data.max_bad_share` allows.
        """
        super().__init__()
        self.data, self.image_size, self.seed, self.workers = data, image_size, seed, workers
        self.global_batch, self.total_samples = global_batch, total_samples
        self.tokenizer = tokenizer
        self.samples_seen = 0
        self.phases: Sequence[Phase] = ()
        self.skip_windows: tuple[SkipWindow, ...] = ()
        self.layout = build_layout(data)
        self._bad_sample_log = BadSampleLog(self.layout, data.max_bad_share)
        held_out = data.validation.num_samples if data.validation.path is None else 0
        order = build_order(self.layout, data, seed=seed, num_held_out=held_out, limit=overfit_samples)
        self.held_out = order.held_out()
        if not order.num_samples:
            raise DataError(f"data.path={data.path} holds no sample to train on.")
        if data.length_buckets > 1:
            order = BucketedOrder(
                order,
                self.layout.caption_lengths,
                seed=seed,
                global_batch=global_batch,
                buckets=data.length_buckets,
                total_samples=total_samples,
            )
        self.order = order
        self.num_samples = order.num_samples
        self.fingerprint = self.layout.fingerprint()

    def captions(self, limit: int) -> Iterator[str]:
        """The captions of up to `limit` training samples, evenly spread over the data, the same on every rank."""
        count = min(limit, self.num_samples)
        index = np.arange(count, dtype=np.int64) * self.num_samples // max(count, 1)
        for sample_id in self.order.training_ids(index).tolist():
            yield from self.layout.readable_captions(sample_id)

    def train_dataloader(self) -> "TrainingLoader":
        """This rank's share of the rest of the run, from `samples_seen` on; its length is the number of steps left."""
        return TrainingLoader(self, self._maker(training=True))

    def val_dataloader(self) -> DataLoader[Batch]:
        """This rank's share of the validation pairs, in a fixed order; empty where there are none.

        Shares are equally long, so that no rank of a sharded model waits for another's forward pass; what would be
        missing from the last is taken twice, and told apart by its position.
        """
        rank, world = rank_and_world()
        maker, num = self._validation
        size = -(-num // world)
        first = min(rank * size, num - size)
        last = first + size
        starts = range(first, last, VALIDATION_BATCH)
        pieces = [np.arange(start, min(start + VALIDATION_BATCH, last), dtype=np.int64) for start in starts]
        # The pieces are few: forking processes for them would take longer than the pixels.
        return DataLoader(ValidationPieces(maker, pieces), batch_size=None)

    @property
    def bad_samples(self) -> Counter[str]:
        """Bad samples by cause that this rank has met, each counted once.

        What the index left out is rank 0's to count, so that the sum over ranks has it once.
        """
        return self._bad_sample_log.counts(with_index=rank_and_world()[0] == 0)

    def write_bad_samples(self, path: Path) -> None:
        """Adds this rank's bad samples to a JSONL file; ranks other than 0 write beside it, with their number."""
        rank, _ = rank_and_world()
        own = path.with_stem(f"{path.stem}-rank{rank}") if rank else path
        self._bad_sample_log.write(own, with_index=rank == 0)

    def _maker(self, *, training: bool) -> BatchMaker:
        if self.tokenizer is None:
            raise RuntimeError("the tokenizer must be set before a loader is asked for")
        return BatchMaker(
            self.layout,
            self.order if training else FixedOrder(self.held_out),
            self.tokenizer,
            self.data,
            image_size=self.image_size,
            seed=self.seed,
            training=training,
            phases=self.phases if training else (),
        )

    @cached_property
    def _validation(self) -> tuple[BatchMaker, int]:
        """What makes validation batches, and of how many pairs."""
        maker, wanted = self._maker(training=False), self.data.validation.num_samples
        if self.data.validation.path is not None and wanted:
            maker.layout = build_layout(self.data, self.data.validation.path)
            count = min(wanted, maker.layout.num_samples)
            maker.order = FixedOrder(np.arange(count, dtype=np.int64) * maker.layout.num_samples // count)
        return maker, maker.order.num_samples


class TrainingLoader:
    """Iterates over the steps that are left: this rank's slice of each, in one `Batch`.

    Bad samples are counted here, in the main process, and too many of them raise `DataError`.
    """

    def __init__(self, module: ContrastiveDataModule, maker: BatchMaker) -> None:
        """Raises: DataError where the ranks cannot share a batch evenly."""
        rank, world = rank_and_world()
        if module.global_batch % world:
            raise DataError(f"compute.global_batch={module.global_batch} does not divide by {world} ranks.")
        self.module, self.start = module, module.samples_seen
        self.pieces = TrainingPieces(maker, self.start, module.global_batch, rank, world, module.skip_windows)
        self.num_steps = max(0, (module.total_samples - self.start) // module.global_batch)

    def __len__(self) -> int:
        """Steps that are left."""
        return self.num_steps

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this rank."""
        per_step = self.pieces.per_step
        loader = _loader(self.pieces, range(self.num_steps * per_step), self.module.workers)
        bad_sample_log = self.module._bad_sample_log
        with Prefetcher(self.pieces.maker.layout, self.module.order, self.module.data.cache.ahead) as prefetcher:
            prefetcher.reached(int(positions_of(np.array([self.start]), self.pieces.skip_windows)[0]))
            made: list[Batch] = []
            handed = 0
            for piece in loader:
                if isinstance(piece, UserError):
                    raise piece
                handed += len(piece.batch.positions)
                prefetcher.reached(int(piece.batch.positions[-1]))
                bad_sample_log.note(piece.bad, handed)
                made.append(piece.batch)
                if len(made) == per_step:
                    yield joined(made, self.pieces.maker.tokenizer.pad_id)
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
