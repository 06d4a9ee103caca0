"""The images of a test set as the model sees them, decoded ahead of it by a few threads."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError
from clip_lightning.evaluation.cache import MemoryBudget


class DecodedBatch(NamedTuple):
    """Images of some samples.

    Attributes:
        images: uint8 [b, 3, S, S]; black where an image could not be read.
        readable: bool [b].
        problem: place in the batch of the first unreadable one and why it could not be read; None where all could.
    """

    images: Tensor
    readable: Tensor
    problem: tuple[int, str] | None


class DecodedImages:
    """Batches of images; kept as uint8 between runs where they fit, so that each image is decoded once."""

    def __init__(self, read: Callable[[int], Tensor], image_size: int, batch: int, budget: MemoryBudget) -> None:
        """Args: read: image k, uint8 [3, S, S]; called from several threads. budget: shared by all test sets."""
        self.read, self.image_size, self.batch, self.budget = read, image_size, batch, budget
        self._kept: list[DecodedBatch] = []
        self._kept_samples: list[int] = []
        self._keeps: bool | None = None

    def batches(self, samples: list[int]) -> Iterator[DecodedBatch]:
        """The images of these samples in their order, decoded one batch ahead of whoever iterates."""
        if self._kept_samples == samples:
            yield from self._kept
            return
        if self._keeps is None:
            self._keeps = self.budget.reserve(len(samples) * 3 * self.image_size**2)
        kept = []
        with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
            ahead: list[Future[Tensor | str]] = []
            for start in range(0, len(samples) + self.batch, self.batch):
                due, ahead = ahead, [pool.submit(self._try, k) for k in samples[start : start + self.batch]]
                if due:
                    batch = self._stack([image.result() for image in due])
                    if self._keeps:
                        kept.append(batch)
                    yield batch
        if self._keeps:
            self._kept, self._kept_samples = kept, samples

    def _try(self, sample: int) -> Tensor | str:
        """The image, or why it cannot be read."""
        try:
            return self.read(sample)
        except BadSample as bad:
            return f"image {sample} is damaged ({bad.cause} {bad.detail})"
        except (DataError, OSError) as error:
            return " ".join(str(error).split()) or f"image {sample} cannot be read ({type(error).__name__})"

    def _stack(self, found: list[Tensor | str]) -> DecodedBatch:
        black = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)
        readable = [isinstance(image, Tensor) for image in found]
        problem = next(((k, image) for k, image in enumerate(found) if isinstance(image, str)), None)
        images = torch.stack([image if isinstance(image, Tensor) else black for image in found])
        return DecodedBatch(images, torch.tensor(readable), problem)
