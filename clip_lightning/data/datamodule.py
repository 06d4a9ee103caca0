"""The data of a run as Lightning takes it: batches of training pairs from any point of the run on, and held-out pairs.

The whole state is `samples_seen`, and the windows that a run skips. How positions are split over ranks and loader
processes (see `loader`) does not change which sample is at a position.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from clip_lightning.config import lengths
from clip_lightning.config.phases import Phase, phases_of
from clip_lightning.config.schema import Config, DataConfig
from clip_lightning.data.bad_samples import BadSampleLog, write_bad_samples
from clip_lightning.data.batches import Batch, BatchMaker
from clip_lightning.data.images.decode import SHORTEST, Resize
from clip_lightning.data.layouts.layout import build_layout, damaged_shards, digest
from clip_lightning.data.layouts.mixture import build_order
from clip_lightning.data.loader import TrainingLoader, TrainingPieces, ValidationPieces
from clip_lightning.data.order.excluding import excluded_ids
from clip_lightning.data.order.skip_windows import SkipWindow
from clip_lightning.distributed import rank_and_world
from clip_lightning.errors import DataError
from clip_lightning.tokenizer import Tokenizer, build_tokenizer

__all__ = ["Batch", "ContrastiveDataModule"]

# A tokenizer of the run's own is trained on so many captions for each of its ids, at most so many in all. Three of 100
# ids differ between 20,000 and 100,000 of the embedded captions, which take 5 s longer to draw.
_CAPTIONS_PER_ID, _MOST_CAPTIONS = 40, 100_000

VALIDATION_BATCH = 256
_CHECKED_PAIRS = 16  # validation pairs that are read before the run


class ContrastiveDataModule(LightningDataModule):
    """Image-text pairs.

    Attributes:
        layout: the data.
        order: which sample is at which position.
        num_samples: training pairs in an epoch.
        held_out: int64 [n], ids of the pairs that are never trained on.
        num_excluded: pairs that `data.exclude` leaves out; they are neither trained on nor held out.
        fingerprint: 16 hex digits that change when the data changes, or which of it is left out.
        tokenizer: of the run; made at the first loader where a whole config was given, else to be set before it.
        samples_seen: where the training loader begins; set it to resume.
        phases: sizes of training images and texts by samples seen; set it where a run has any.
        skip_windows: windows of positions that the training loader skips.
    """

    def __init__(
        self,
        data: Config | DataConfig,
        *,
        image_size: int = 0,
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
        global_batch: int = 0,
        total_samples: int = 0,
        workers: int = 0,
        overfit_samples: int = 0,
    ) -> None:
        """Indexes the data where that is not yet done.

        Args:
            data: a config, from which everything else follows but a tokenizer; or its data alone, with the rest given.
            global_batch: pairs per step over all ranks.
            total_samples: pairs in the run.
            workers: loader processes of this rank; 0 makes batches in this process.
            overfit_samples: if > 0, the run sees only the first so many training samples.
        Raises: DataError where the data is missing, empty, or more damaged than `data.max_bad_share` allows.
        """
        super().__init__()
        config = data if isinstance(data, Config) else None
        self._text = config.model.text if config is not None else None
        self.resize = SHORTEST
        if config is not None:
            self.resize = Resize(config.model.vision.resize, config.model.vision.interpolation)
            image_size, seed, workers = config.model.vision.image_size, config.compute.seed, config.cluster.workers
            global_batch, overfit_samples = config.compute.global_batch, config.debug.overfit_samples
        data = data.data if isinstance(data, Config) else data
        self.data, self.image_size, self.seed, self.workers = data, image_size, seed, workers
        self.global_batch, self.total_samples = global_batch, total_samples
        self.tokenizer = tokenizer
        self.samples_seen = 0
        self.phases: Sequence[Phase] = ()
        self.skip_windows: tuple[SkipWindow, ...] = ()
        self.layout = build_layout(data)
        held_out = data.validation.num_samples if data.validation.path is None else 0
        excluded = excluded_ids(self.layout, data)
        order = build_order(
            self.layout, data, seed=seed, num_held_out=held_out, limit=overfit_samples, excluded=excluded
        )
        self.num_excluded = len(excluded)
        self.held_out = order.held_out()
        if not order.num_samples:
            raise DataError(f"data.path={data.path} holds no sample to train on.")
        self.order = order
        self.num_samples = order.num_samples
        self.fingerprint = self.layout.fingerprint()
        if self.num_excluded:
            self.fingerprint = digest(self.fingerprint, excluded.astype("<i8").tobytes())
        self._set_validation()
        if config is not None:
            self.total_samples = lengths.total_samples(config, self.num_samples)
            sizes = {"total_samples": self.total_samples, "epoch_samples": self.num_samples}
            self.phases = phases_of(config, **sizes)

    def state_dict(self) -> dict[str, Any]:
        """The place in the run, for a checkpoint of Lightning's: samples of finished steps, and the skip windows."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        return {
            "samples_seen": getattr(module, "samples_seen", self.samples_seen),
            "skip_windows": [list(window) for window in self.skip_windows],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets the training loader begin at the saved place."""
        self.samples_seen = state_dict["samples_seen"]
        self.skip_windows = tuple(SkipWindow(*window) for window in state_dict["skip_windows"])

    def captions(self, limit: int) -> Iterator[str]:
        """The captions of up to `limit` training samples, evenly spread over the data, the same on every rank."""
        count = min(limit, self.num_samples)
        index = np.arange(count, dtype=np.int64) * self.num_samples // max(count, 1)
        for sample_id in self.order.training_ids(index).tolist():
            yield from self.layout.readable_captions(sample_id)

    def tokenizer_captions(self, vocab_size: int) -> Iterator[str]:
        """The captions that a tokenizer of the run's own, with `vocab_size` ids, is trained on."""
        return self.captions(min(_CAPTIONS_PER_ID * vocab_size, _MOST_CAPTIONS))

    def train_dataloader(self) -> TrainingLoader:
        """This rank's share of the rest of the run, from `samples_seen` on; its length is in steps.

        Raises: DataError where the ranks cannot share a batch evenly.
        """
        rank, world = rank_and_world()
        if self.global_batch % world:
            raise DataError(f"compute.global_batch={self.global_batch} does not divide by {world} ranks.")
        self._prepare_tokenizer()
        maker, start = self._maker(), self.samples_seen
        return TrainingLoader(
            TrainingPieces(maker, start, self.global_batch, rank, world, self.skip_windows),
            max(0, (self.total_samples - start) // self.global_batch),
            self.order,
            workers=self.workers,
            ahead=self.data.cache.ahead,
            bad_samples=self._bad_sample_logs[0],
            # Lightning continues to count the batches of an epoch, which is the whole run, where a checkpoint stopped.
            num_before=self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer is not None else 0,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """This rank's share of the validation pairs, in a fixed order; empty where there are none.

        Shares are equally long, so that no rank of a sharded model waits for another's forward pass; what would be
        missing from the last share is read twice, with the same position. A bad sample has a negative position.
        """
        rank, world = rank_and_world()
        num = self.num_validation
        size = -(-num // world)
        first = min(rank * size, num - size)
        last = first + size
        starts = range(first, last, VALIDATION_BATCH)
        pieces = [np.arange(start, min(start + VALIDATION_BATCH, last), dtype=np.int64) for start in starts]
        # The pieces are few: forking processes for them would take longer than the pixels.
        self._prepare_tokenizer()
        maker = self._maker(validation=True)
        return DataLoader(
            ValidationPieces(maker, self._validation_ids, pieces, self._bad_sample_logs[-1]), batch_size=None
        )

    def validation_batch(self, num_pairs: int) -> Batch:
        """At most `num_pairs` validation pairs, spread evenly over all, the same on every rank and at every call.

        A bad sample has a negative position.
        """
        count = min(num_pairs, self.num_validation)
        positions = np.arange(count, dtype=np.int64) * self.num_validation // max(count, 1)
        self._prepare_tokenizer()
        maker = self._maker(validation=True)
        return ValidationPieces(maker, self._validation_ids, [positions], self._bad_sample_logs[-1])[0]

    def validation_captions(self, pairs: Batch) -> list[str]:
        """The caption of each pair of a validation batch; empty where the pair cannot be read."""
        captions = map(self._validation_layout.readable_captions, pairs.sample_ids.tolist())
        return [next(iter(of_sample), "") for of_sample in captions]

    def check_validation(self) -> None:
        """Reads and decodes the first validation pairs, so that what keeps an evaluation from starting shows now.

        Raises: DataError where none of them can be read.
        """
        if not self.num_validation:
            return
        sample_ids = self._validation_ids[:_CHECKED_PAIRS]
        bad = self._maker(validation=True).problems_of(sample_ids)
        if len(bad) == len(sample_ids):
            raise DataError(
                f"none of the first {len(sample_ids)} validation pairs can be read (the first: {bad[0].cause}, in "
                f"{self._validation_layout.name_of(bad[0].sample_id).shard})."
            )

    @property
    def notes(self) -> list[str]:
        """What the data lacks, one sentence each: damaged shards with their lost samples, missing validation pairs."""
        notes = damaged_shards(self.layout.problems)
        if self.data.exclude is not None:
            notes.append(f"data.exclude leaves out {self.num_excluded:,} of {self.layout.num_samples:,} pairs")
        if self.data.validation.num_samples and not self.num_validation:
            notes.append(f"no validation: a tenth of {self.layout.num_samples} pairs is too few to hold out")
        return notes

    @property
    def identity(self) -> dict[str, str | int]:
        """What identifies this data: fingerprint, number of training pairs, validation data of its own."""
        own = {} if self._validation_layout is self.layout else {"validation": self._validation_layout.fingerprint()}
        return {"fingerprint": self.fingerprint, "num_samples": self.num_samples, **own}

    @property
    def num_validation(self) -> int:
        """Validation pairs; 0 also where fewer than two are there, with which nothing can be measured."""
        return num if (num := len(self._validation_ids)) > 1 else 0

    @property
    def bad_samples(self) -> Counter[str]:
        """Distinct bad samples by cause: those the index has found, and those the ranks had read by the last exchange.

        With a single rank, all that it has read.
        """
        counts = Counter[str]()
        for log in self._bad_sample_logs:
            counts += log.counts()
        return counts

    @property
    def num_new_bad_samples(self) -> int:
        """Bad samples that this rank has read since the last exchange."""
        return sum(log.num_new for log in self._bad_sample_logs)

    def exchange_bad_samples(self) -> None:
        """Shares what each rank has read since the last exchange; a collective."""
        for log in self._bad_sample_logs:
            log.exchange()

    def write_bad_samples(self, path: Path) -> None:
        """Adds this rank's bad samples to a JSONL file; ranks other than 0 write beside it, with their number."""
        rank, _ = rank_and_world()
        own = path.with_stem(f"{path.stem}-rank{rank}") if rank else path
        write_bad_samples(own, self._bad_sample_logs, with_index=rank == 0)

    def _prepare_tokenizer(self) -> None:
        """Makes the tokenizer of a whole config. Raises: RuntimeError where it must be set and is not."""
        if self.tokenizer is None:
            if self._text is None:
                raise RuntimeError("the tokenizer must be set before a loader is made")
            kind, vocab_size = self._text.tokenizer.kind, self._text.tokenizer.vocab_size
            captions = self.tokenizer_captions(vocab_size) if kind == "trained" else None
            self.tokenizer = build_tokenizer(self._text, None, captions)

    def _maker(self, *, validation: bool = False) -> BatchMaker:
        return BatchMaker(
            self._validation_layout if validation else self.layout,
            None if validation else self.order,
            self.tokenizer,
            self.data,
            image_size=self.image_size,
            seed=self.seed,
            phases=() if validation else self.phases,
            resize=self.resize,
        )

    def _set_validation(self) -> None:
        """Chooses the validation pairs: those held out, or pairs spread evenly over data of their own."""
        self._validation_layout, self._validation_ids = self.layout, self.held_out
        self._bad_sample_logs = [BadSampleLog(self.layout, self.data.max_bad_share)]
        wanted, path = self.data.validation.num_samples, self.data.validation.path
        if path is not None and wanted:
            layout = build_layout(self.data, path)
            count = min(wanted, layout.num_samples)
            self._validation_layout = layout
            self._validation_ids = np.arange(count, dtype=np.int64) * layout.num_samples // count
            self._bad_sample_logs.append(BadSampleLog(layout, self.data.max_bad_share))
