"""From positions in the run to a batch: the whole work of a loader process, one call for many samples.

A sample that cannot be read or decoded is replaced by the one that the order gives for it, the same in every
process; bad samples are passed to the main process with the batch, and are counted there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_lightning.config.phases import Phase, phase_at
from clip_lightning.config.schema import DataConfig
from clip_lightning.data.images import augment
from clip_lightning.data.images.decode import SHORTEST, Opened, Resize, eval_into, open_image
from clip_lightning.data.layouts.layout import BadSample, Ids, Layout
from clip_lightning.data.order.order import SampleOrder
from clip_lightning.errors import DataError
from clip_lightning.tokenizer import TokenBatch, Tokenizer

MOST_ATTEMPTS = 64


class Batch(NamedTuple):
    """b pairs.

    Attributes:
        images: uint8 [b, 3, S, S], channels last in memory.
        tokens: int64 [b, L], padded to the longest caption.
        lengths: int64 [b], tokens that are not padding.
        sample_ids: int64 [b], of the samples as they are, substitutes of bad ones included.
        positions: int64 [b], in the run; negative in a validation batch where the sample is bad.
        num_cut: captions that were longer than the context.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    sample_ids: Tensor
    positions: Tensor
    num_cut: int


class Bad(NamedTuple):
    """One damaged sample."""

    sample_id: int
    cause: str
    detail: str


class Made(NamedTuple):
    """A batch and the damaged samples that were replaced in it."""

    batch: Batch
    bad: list[Bad]


class BatchMaker:
    """Makes batches of one layout in one order. Holds nothing that changes, so any process makes the same batch."""

    def __init__(
        self,
        layout: Layout,
        order: SampleOrder | None,
        tokenizer: Tokenizer | None,
        config: DataConfig,
        *,
        image_size: int,
        seed: int,
        phases: Sequence[Phase] = (),
        resize: Resize = SHORTEST,
    ) -> None:
        """Args.

        order: of training, with random crops and captions; None is validation, with the evaluation transform and the
            first caption.
        phases: of the run; without any, all images and texts are those of `image_size` and `tokenizer`.
        resize: of validation images.
        """
        self.layout, self.order, self.config = layout, order, config
        self._tokenizer = tokenizer
        self.image_size, self.seed, self.phases, self.resize = image_size, seed, phases, resize

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises: RuntimeError where it was not set in time."""
        if self._tokenizer is None:
            raise RuntimeError("the data module's tokenizer must be set before a loader is made")
        return self._tokenizer

    def problems_of(self, sample_ids: Ids) -> list[Bad]:
        """Those of the samples, int64 [n], that cannot be read or decoded; needs no tokenizer."""
        images = augment.empty_images(len(sample_ids), self.image_size)
        bad: list[Bad] = []
        rows = np.arange(len(sample_ids))
        self._fill(rows, sample_ids, np.zeros_like(sample_ids), images, [""] * len(rows), bad)
        return bad

    def make(self, positions: Ids, samples_seen: int = 0) -> Made:
        """The batch at `positions`, int64 [b], all in one phase: in images and texts of its size.

        Args: samples_seen: of the run at the first of them, which decides over the phase.
        Raises: DataError where no substitute of a bad sample can be read either.
        """
        size, tokenizer = self.image_size, self.tokenizer
        if self.phases:
            phase = phase_at(self.phases, samples_seen)
            size, tokenizer = phase.image_size, tokenizer.with_context_length(phase.context_length)
        assert self.order is not None
        located = self.order.locate(positions)
        sample_ids = located.sample_ids.copy()
        images = augment.empty_images(len(positions), size)
        captions = [""] * len(positions)
        bad: list[Bad] = []
        failed = np.arange(len(positions))
        for attempt in range(MOST_ATTEMPTS):
            failed = self._fill(failed, sample_ids, located.epochs, images, captions, bad)
            if not len(failed):
                break
            for k in failed.tolist():
                original = int(located.sample_ids[k])
                sample_ids[k] = self.order.substitute(original, int(located.epochs[k]), attempt)
        else:
            raise DataError(
                f"{MOST_ATTEMPTS} samples in a row are bad, the last ({bad[-1].cause}: {bad[-1].detail}) in "
                f"{self.layout.name_of(bad[-1].sample_id).shard}; check that data.path={self.config.path} still exists."
            )
        return Made(_batch(images, tokenizer(captions), sample_ids, positions), bad)

    def make_validation(self, sample_ids: Ids, positions: Ids) -> Made:
        """A validation batch of the samples `sample_ids`, int64 [b], without substitutes.

        A bad sample keeps its row, so that all ranks have equally many: a black image, an empty caption, and
        -1 - position in place of its position.
        """
        images = augment.empty_images(len(positions), self.image_size)
        captions = [""] * len(positions)
        bad: list[Bad] = []
        failed = self._fill(np.arange(len(positions)), sample_ids, np.zeros_like(positions), images, captions, bad)
        images[failed] = 0
        marked = positions.copy()
        marked[failed] = -1 - positions[failed]
        return Made(_batch(images, self.tokenizer(captions), sample_ids, marked), bad)

    def _fill(self, rows: Ids, ids: Ids, epochs: Ids, images: Tensor, captions: list[str], bad: list[Bad]) -> Ids:
        """Puts the samples `ids[rows]` into those rows of the batch; returns the rows that could not be filled."""
        opened: dict[int, Opened] = {}
        draws = augment.draw(self.seed, epochs[rows], ids[rows])
        failed: dict[int, BadSample] = {}
        for n, raw in enumerate(self.layout.read_many(ids[rows])):
            try:
                if isinstance(raw, BadSample):
                    raise raw
                opened[n] = open_image(
                    raw.image, max_pixels=self.config.max_pixels, exif_rotation=self.config.exif_rotation
                )
            except BadSample as error:
                failed[n] = error
                continue
            choice = int(draws[n, augment.CAPTION] * len(raw.captions)) if self.order is not None else 0
            captions[rows[n]] = raw.captions[choice]
        sizes = np.array([(one.width, one.height) for one in opened.values()], np.int64).reshape(-1, 2)
        config, size = self.config.augment, images.shape[-1]
        boxes = augment.crop_boxes(config, sizes[:, 0], sizes[:, 1], draws[list(opened)], size).tolist()
        for (n, one), box in zip(opened.items(), boxes[: len(opened)], strict=True):
            try:
                if self.order is not None:
                    augment.crop_into(one, box, images[rows[n]], config, jpeg_scaling=self.config.jpeg_scaling)
                    augment.change(images[rows[n]], config, draws[n])
                else:
                    eval_into(one, images[rows[n]], self.resize)
            except BadSample as error:
                failed[n] = error
        bad += [Bad(int(ids[rows[n]]), failed[n].cause, failed[n].detail) for n in sorted(failed)]
        return rows[sorted(failed)]


def _batch(images: Tensor, tokens: TokenBatch, sample_ids: Ids, positions: Ids) -> Batch:
    return Batch(
        images,
        torch.from_numpy(tokens.tokens),
        torch.from_numpy(tokens.lengths),
        torch.from_numpy(sample_ids),
        torch.from_numpy(positions.copy()),
        tokens.num_cut,
    )
