"""From positions in the run to a batch: the whole work of a loader process, one call for many samples.

A sample that cannot be read or decoded is replaced by the one that the order names for it, the same for whoever makes
the batch; what was bad travels with the batch to the main process, where it is counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_lightning.config.phases import Phase, phase_at
from clip_lightning.config.schema import DataConfig
from clip_lightning.data.images import augment
from clip_lightning.data.images.decode import Opened, eval_into, open_image
from clip_lightning.data.layouts.layout import BadSample, Ids, Layout
from clip_lightning.data.order.counter_rng import SUBSTITUTE, hashed
from clip_lightning.data.order.order import Located, SampleOrder
from clip_lightning.errors import DataError
from clip_lightning.tokenizer import Tokenizer

MOST_ATTEMPTS = 64


class Batch(NamedTuple):
    """b pairs.

    Attributes:
        images: uint8 [b, 3, S, S], channels last in memory.
        tokens: int64 [b, L], padded to the longest caption.
        lengths: int64 [b], tokens that are not padding.
        sample_ids: int64 [b], of the samples as they are, substitutes of bad ones included.
        positions: int64 [b], in the run.
        num_cut: captions that were longer than the context.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    sample_ids: Tensor
    positions: Tensor
    num_cut: int


class Bad(NamedTuple):
    """One damaged sample as it was met."""

    sample_id: int
    cause: str
    detail: str


class Made(NamedTuple):
    """A batch and the damaged samples that were replaced in it."""

    batch: Batch
    bad: list[Bad]


class FixedOrder:
    """Validation: position k is the k-th of some ids, in every epoch."""

    def __init__(self, sample_ids: Ids) -> None:
        """Args: sample_ids: int64 [n]."""
        self.sample_ids, self.num_samples = sample_ids, len(sample_ids)

    def locate(self, positions: Ids) -> Located:
        """The ids at some positions, all in epoch 0."""
        return Located(self.sample_ids[positions], np.zeros_like(positions))

    def substitute(self, sample_id: int, epoch: int, attempt: int) -> int:
        """Another of these ids."""
        return int(self.sample_ids[int(hashed(SUBSTITUTE, epoch, sample_id, attempt)[0]) % self.num_samples])


class BatchMaker:
    """Makes batches of one layout in one order. Holds nothing that changes, so any process makes the same batch."""

    def __init__(
        self,
        layout: Layout,
        order: SampleOrder | FixedOrder,
        tokenizer: Tokenizer,
        config: DataConfig,
        *,
        image_size: int,
        seed: int,
        training: bool,
        phases: Sequence[Phase] = (),
    ) -> None:
        """Args.

        training: random crops and captions; otherwise the evaluation transform and the first caption.
        phases: of the run; without any, all images and texts are those of `image_size` and `tokenizer`.
        """
        self.layout, self.order, self.tokenizer, self.config = layout, order, tokenizer, config
        self.image_size, self.seed, self.training, self.phases = image_size, seed, training, phases

    def make(self, positions: Ids, samples_seen: int = 0) -> Made:
        """The batch at `positions`, int64 [b], all in one phase: in images and texts of its size.

        Args: samples_seen: of the run at the first of them, which decides over the phase.
        Raises: DataError where no substitute of a bad sample can be read either.
        """
        size, tokenizer = self.image_size, self.tokenizer
        if self.phases:
            phase = phase_at(self.phases, samples_seen)
            size, tokenizer = phase.image_size, tokenizer.with_context_length(phase.context_length)
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
                f"{self.layout.name_of(bad[-1].sample_id).shard}; is data.path={self.config.path} still there?"
            )
        tokens = tokenizer(captions)
        return Made(
            Batch(
                images,
                torch.from_numpy(tokens.tokens),
                torch.from_numpy(tokens.lengths),
                torch.from_numpy(sample_ids),
                torch.from_numpy(positions.copy()),
                tokens.num_cut,
            ),
            bad,
        )

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
            choice = int(draws[n, augment.CAPTION] * len(raw.captions)) if self.training else 0
            captions[rows[n]] = raw.captions[choice]
        sizes = np.array([(one.width, one.height) for one in opened.values()], np.int64).reshape(-1, 2)
        config, size = self.config.augment, images.shape[-1]
        boxes = augment.crop_boxes(config, sizes[:, 0], sizes[:, 1], draws[list(opened)], size).tolist()
        for (n, one), box in zip(opened.items(), boxes, strict=True):
            try:
                if self.training:
                    augment.crop_into(one, box, images[rows[n]], config, jpeg_scaling=self.config.jpeg_scaling)
                    augment.change(images[rows[n]], config, draws[n])
                else:
                    eval_into(one, images[rows[n]])
            except BadSample as error:
                failed[n] = error
        bad += [Bad(int(ids[rows[n]]), failed[n].cause, failed[n].detail) for n in sorted(failed)]
        return rows[sorted(failed)]
