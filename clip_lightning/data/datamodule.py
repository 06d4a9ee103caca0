"""The data of a run as Lightning takes it: batches of training pairs from any point of the run on, and held-out pairs.

The whole state is `samples_seen`, and the windows that a run passes over. Positions are cut into steps of the global
batch, steps into one slice per rank, and slices into pieces that one loader process makes; none of these cuts changes
what stands at a position.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from clip_lightning.config import lengths
from clip_lightning.config.phases import Phase, phases_of
from clip_lightning.config.schema import Config, DataConfig
from clip_lightning.data.bad_samples import BadSampleLog
from clip_lightning.data.batches import Batch, BatchMaker, FixedOrder
from clip_lightning.data.layouts.layout import build_layout
from clip_lightning.data.layouts.mixture import build_order
from clip_lightning.data.loader import TrainingLoader, TrainingPieces, ValidationPieces
from clip_lightning.data.order.skip_windows import SkipWindow
from clip_lightning.distributed import rank_and_world
from clip_lightning.errors import DataError
from clip_lightning.tokenizer import Tokenizer, build_tokenizer

__all__ = ["Batch", "ContrastiveDataModule"]

TOKENIZER_CAPTIONS = 100_000  # that a tokenizer of the run's own is trained on

VALIDATION_BATCH = 256


class ContrastiveDataModule(LightningDataModule):
    """Image-text pairs.

    Attributes:
        layout: the data.
        order: what stands at which position.
        num_samples: training pairs in an epoch.
        held_out: int64 [n], ids of the pairs that are never trained on.
        fingerprint: 16 hex digits that change when the data changes.
        tokenizer: of the run; made at the first loader where a whole config was given, else to be set before it.
        samples_seen: where the training loader begins; set it to resume.
        phases: sizes of training images and texts by samples seen; set it where a run has any.
        skip_windows: windows of positions that the training loader leaves out.
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
        if config is not None:
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
        self._bad_sample_log = BadSampleLog(self.layout, data.max_bad_share)
        held_out = data.validation.num_samples if data.validation.path is None else 0
        order = build_order(self.layout, data, seed=seed, num_held_out=held_out, limit=overfit_samples)
        self.held_out = order.held_out()
        if not order.num_samples:
            raise DataError(f"data.path={data.path} holds no sample to train on.")
        self.order = order
        self.num_samples = order.num_samples
        self.fingerprint = self.layout.fingerprint()
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

    def train_dataloader(self) -> TrainingLoader:
        """This rank's share of the rest of the run, from `samples_seen` on; its length is the number of steps left.

        Raises: DataError where the ranks cannot share a batch evenly.
        """
        rank, world = rank_and_world()
        if self.global_batch % world:
            raise DataError(f"compute.global_batch={self.global_batch} does not divide by {world} ranks.")
        maker, start = self._maker(training=True), self.samples_seen
        return TrainingLoader(
            TrainingPieces(maker, start, self.global_batch, rank, world, self.skip_windows),
            max(0, (self.total_samples - start) // self.global_batch),
            self.order,
            workers=self.workers,
            ahead=self.data.cache.ahead,
            bad_samples=self._bad_sample_log,
            # Lightning continues to count the batches of an epoch, which is the whole run, where a checkpoint stopped.
            num_before=self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer is not None else 0,
        )

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
            if self._text is None:
                raise RuntimeError("the tokenizer must be set before a loader is made")
            is_trained = self._text.tokenizer.kind == "trained"
            self.tokenizer = build_tokenizer(
                self._text, None, self.captions(TOKENIZER_CAPTIONS) if is_trained else None
            )
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
