"""Zero-shot classification: images against the classifier made of a task's prompts.

Images are decoded ahead of the model by a few threads, and kept as uint8 between runs where they fit, so that an
evaluation during training costs the towers' forward passes alone. Each image counts exactly once, whatever the ranks.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from clip_lightning.distributed import all_reduce_sum, padded_share
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.classifier import ClassifierBuilder
from clip_lightning.evaluation.inference import inference, refuse_broken
from clip_lightning.evaluation.metrics import ClassAccuracy
from clip_lightning.evaluation.tasks import ZeroShotTask
from clip_lightning.model.clip import CLIP
from clip_lightning.records import Record
from clip_lightning.tokenizer import Tokenizer


class ZeroShotEvaluator:
    """Top-1, top-5 and mean per class of one task."""

    def __init__(
        self,
        task: ZeroShotTask,
        image_size: int,
        *,
        batch: int = 256,
        precision: str = "fp32",
        budget: MemoryBudget | None = None,
    ) -> None:
        """Args.

        image_size: pixels, square, of the model's input.
        batch: images (and prompts) per forward on a rank.
        precision: of the towers: fp32, bf16, fp16; logits are float32.
        budget: of memory, shared with other evaluators; decoded images are kept between runs where they fit.
        """
        self.task, self.image_size, self.batch, self.precision = task, image_size, batch, precision
        self.budget = budget or MemoryBudget()
        self.classifier = ClassifierBuilder(task.name, task.classnames, task.templates, batch)
        self._decoded: list[Tensor] = []
        self._decoded_samples: list[int] = []
        self._keeps: bool | None = None

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        """Records `acc1`, `acc5`, `mean_per_class`, the same on every rank.

        Raises UserError when features are NaN or infinite, DataError when an image cannot be read.
        """
        samples, num_counted = padded_share(self.task.num_samples)
        labels = torch.as_tensor(self.task.labels)[samples].to(device)
        accuracy = ClassAccuracy(len(self.task.classnames)).to(device)
        broken = torch.zeros((), dtype=torch.int64, device=device)
        with inference(model, device, self.precision):
            classifier = self.classifier.build(model, tokenizer, device)
            start = 0
            for images in self._batches(samples):
                features_BD = model.encode_image(images.to(device, non_blocking=True))
                counted = slice(0, max(0, min(len(images), num_counted - start)))
                logits_BC = classifier.cosines(features_BD[counted])
                broken += (~logits_BC.isfinite()).any(1).sum()
                accuracy.update(logits_BC, labels[start : start + len(images)][counted])
                start += len(images)
        refuse_broken(int(all_reduce_sum(broken)), self.task.num_samples, f"{self.task.name}, images")
        counts = accuracy.synced()
        assert counts.num_images == self.task.num_samples
        return [
            Record(
                what=what,
                value=measured.value,
                low=measured.low,
                high=measured.high,
                chance=measured.chance,
                n=counts.num_images,
                task=self.task.name,
                split=self.task.split,
                prompts=self.task.prompts,
                prompts_hash=self.task.prompts_hash,
                precision=self.precision,
                per_class=tuple(counts.recalls) if what == "mean_per_class" else None,
            )
            for what, measured in counts.accuracies().items()
        ]

    def _batches(self, samples: list[int]) -> Iterator[Tensor]:
        """Images of this rank, uint8 [b, 3, S, S], decoded one batch ahead of the model."""
        if self._decoded_samples == samples:
            yield from self._decoded
            return
        if self._keeps is None:
            self._keeps = self.budget.reserve(len(samples) * 3 * self.image_size**2)
        keep = self._keeps
        decoded = []
        with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
            ahead: list[Future[Tensor]] = []
            for start in range(0, len(samples) + self.batch, self.batch):
                due, ahead = ahead, [self._decode(pool, k) for k in samples[start : start + self.batch]]
                if due:
                    images = torch.stack([image.result() for image in due])
                    if keep:
                        decoded.append(images)
                    yield images
        if keep:
            self._decoded, self._decoded_samples = decoded, samples

    def _decode(self, pool: ThreadPoolExecutor, sample: int) -> Future[Tensor]:
        return pool.submit(self.task.image, sample, self.image_size)
