"""Features of many images and texts, shared between the ranks.

Whole batches are dealt to the ranks, so that a batch holds the same items whatever the number of ranks, and features
are equal to the bit. An image that cannot be read has no features: it is left out, and counted.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.distributed import all_gather, all_reduce_max, exchange, padded_share, rank_and_world
from clip_lightning.errors import DataError
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.inference import refuse_broken
from clip_lightning.model.clip import CLIP
from clip_lightning.tokenizer import Tokenizer

# Shape suffixes: n items, b items of a batch, D features, S pixels, U different texts

Encode = Callable[[Iterator[range]], Iterator[Tensor]]


def shared_rows(num: int, batch: int, encode: Encode) -> Tensor:
    """The rows [num, D] of all items, in their order, on every rank.

    Args:
        num: items, at least one.
        batch: items of a batch; the last one may have fewer.
        encode: yields the rows [b, D] of each of this rank's batches, which are ranges of items. Every rank has equally
            many, since a sharded model gathers its weights in each call.
    """
    starts = range(0, num, batch)
    mine, _ = padded_share(len(starts))
    batches = (range(starts[k], min(num, starts[k] + batch)) for k in mine)
    own = torch.stack([pad(rows, (0, 0, 0, batch - len(rows))) for rows in encode(batches)])
    if (world := rank_and_world()[1]) == 1:
        return own.flatten(0, 1)[:num]
    return all_gather(own).unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 2)[:num]


class Texts(NamedTuple):
    """Features of texts, equal texts once: float32 [U, D], and the row that each text has, int64 [n]."""

    features: Tensor
    row: Tensor


def encode_texts(model: CLIP, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device, batch: int) -> Texts:
    """Unit features of texts, at least one. Must be called under `inference`, on every rank.

    Texts of about one length share a batch, since a batch is as wide as its longest text. Raises UserError when a
    feature is NaN or infinite.
    """
    different = sorted(dict.fromkeys(texts), key=lambda text: (len(text), text))
    rows = {text: row for row, text in enumerate(different)}

    def encode(batches: Iterator[range]) -> Iterator[Tensor]:
        for chosen in batches:
            encoded = tokenizer(different[chosen.start : chosen.stop])
            tokens, lengths = torch.from_numpy(encoded.tokens), torch.from_numpy(encoded.lengths)
            yield model.encode_text(tokens.to(device), lengths.to(device))

    features_UD = shared_rows(len(different), batch, encode)
    refuse_broken(int((~features_UD.isfinite()).any(1).sum()), len(different), "captions")
    return Texts(features_UD, torch.tensor([rows[text] for text in texts], device=device))


class ImageReader:
    """Decodes images ahead of the model by a few threads, and keeps them between runs where they fit."""

    def __init__(
        self, num: int, image: Callable[[int], Tensor], size: int, batch: int, budget: MemoryBudget | None = None
    ) -> None:
        """Args.

        num: images.
        image: image k as uint8 [3, S, S]; raises BadSample where it cannot be read; called from several threads.
        size: S.
        batch: images of a batch.
        budget: of memory; without one nothing is kept.
        """
        self.num, self.size, self.batch = num, size, batch
        self._image, self._budget = image, budget
        self._kept: dict[int, Tensor] = {}
        self.bad: dict[int, BadSample] = {}  # of this rank, by image

    def encode(self, model: Callable[[Tensor], Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Features float32 [n, D] of the images that can be read, and which images these are, int64 [n] in order.

        Must be called under `inference`, on every rank.
        """

        def encode(batches: Iterator[range]) -> Iterator[Tensor]:
            for images in self._batches(batches):
                yield model(images.to(device, non_blocking=True)).float()

        rows = shared_rows(self.num, self.batch, encode)
        is_bad = torch.zeros(self.num, dtype=torch.int64, device=device)
        is_bad[list(self.bad)] = 1
        kept = (all_reduce_max(is_bad) == 0).nonzero()[:, 0]
        return (rows, kept) if len(kept) == self.num else (rows[kept], kept)

    def note(self, name: str, kept: Tensor, least: int = 1) -> str:
        """A sentence about the images that could not be read, the same on every rank; empty where all could.

        Args: name: of the images. kept: int64 [n], those that could be read.
        Raises: DataError where fewer than `least` could.
        """
        num, lost = self.num, self.num - len(kept)
        if not lost:
            return ""
        bad = [(k, found.cause, found.detail) for k, found in self.bad.items()]
        k, cause, detail = min(found for rank in exchange(bad) for found in rank)
        detail = re.sub(r" <.* at 0x\w+>", "", detail)  # Pillow names the object in memory
        first = f"the first is image {k} ({cause}{': ' if detail else ''}{detail})"
        if len(kept) < least:
            raise DataError(f"{name}: {len(kept)} of {num:,} images could be read; {first}.")
        return f"{lost:,} of {num:,} images could not be read and are not counted; {first}."

    def _batches(self, batches: Iterator[range]) -> Iterator[Tensor]:
        """Images of the batches, uint8 [b, 3, S, S], decoded one batch ahead of the model."""
        with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
            ahead: tuple[range, list[Future[Tensor]]] | None = None
            for chosen in [*batches, None]:
                due, ahead = ahead, None
                if chosen is not None:
                    is_kept = chosen.start in self._kept
                    ahead = chosen, [] if is_kept else [pool.submit(self._decode, k) for k in chosen]
                if due is not None:
                    yield self._finish(*due)

    def _finish(self, chosen: range, decoded: list[Future[Tensor]]) -> Tensor:
        if (kept := self._kept.get(chosen.start)) is not None:
            return kept
        images = torch.stack([image.result() for image in decoded])
        if self._budget is not None and self._budget.reserve(images.nbytes):
            self._kept[chosen.start] = images
        return images

    def _decode(self, k: int) -> Tensor:
        """Image k, black where it cannot be read."""
        try:
            return self._image(k)
        except BadSample as bad:
            self.bad[k] = bad
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8)
