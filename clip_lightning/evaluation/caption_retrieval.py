"""Retrieval on images with several captions each: recall at 1, 5 and 10 of a task of `retrieval_tasks`."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.counts import UNIT
from clip_lightning.evaluation.encode import ImageReader, encode_texts
from clip_lightning.evaluation.inference import inference, refuse_broken
from clip_lightning.evaluation.measured import wilson
from clip_lightning.evaluation.recall import CaptionRecall, chance_of_any, count_recall
from clip_lightning.evaluation.retrieval_tasks import RetrievalTask
from clip_lightning.model.clip import CLIP
from clip_lightning.records import Record
from clip_lightning.tokenizer import Tokenizer

DEPTHS = (1, 5, 10)


class CaptionRetrievalEvaluator:
    """Recall at 1, 5 and 10 of a task, of images by captions and of captions by images."""

    def __init__(
        self,
        task: RetrievalTask,
        image_size: int,
        *,
        batch: int = 256,
        precision: str = "fp32",
        budget: MemoryBudget | None = None,
    ) -> None:
        """Args: as of `ZeroShotEvaluator`."""
        self.task, self.batch, self.precision = task, batch, precision
        self.name = task.name
        self._transform = f"{image_size} {task.resize.mode} {task.resize.interpolation}"
        self._reader = ImageReader(
            task.num_samples, partial(_image, task, image_size), image_size, batch, budget or MemoryBudget()
        )

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        """Seven records for each prefix, the same on every rank.

        `n` is the number of queries evaluated: images, or their captions. Captions of one image depend on each other,
        so every interval counts images. An image that cannot be read is left out with its captions.
        Raises UserError when features are NaN or infinite, DataError when fewer than two images can be read.
        """
        task, records = self.task, []
        with inference(model, device, self.precision):
            images_ND, kept_N = self._reader.encode(model.encode_image, device)
            refuse_broken(int((~images_ND.isfinite()).any(1).sum()), task.num_samples, f"{task.name}, images")
            note = self._note(kept_N)
            kept = kept_N.tolist()
            owner_M = torch.arange(len(kept)).repeat_interleave(torch.as_tensor(task.num_captions[kept])).to(device)
            for prompts, prefix in task.prefixes.items():
                texts = [prefix + text for k in kept for text in task.captions[k]]
                features_UD, row_M = encode_texts(model, tokenizer, texts, device, self.batch)
                recall = CaptionRecall(DEPTHS).to(device)
                count_recall(recall, images_ND, features_UD, row_M, owner_M)
                records += self._records(recall, prompts, task.num_captions[kept])
        return [replace(record, note=note) for record in records]

    def _note(self, kept_N: Tensor) -> str:
        notes = [self._reader.note(self.task.name, kept_N, least=2)]
        if (known := self.task.num_expected) is not None and len(kept_N) < known:
            notes.append(f"{len(kept_N):,} images were evaluated, and the set is known to have {known:,}.")
        return " ".join(filter(None, notes))

    def _records(self, recall: CaptionRecall, prompts: str, num_captions: np.ndarray) -> list[Record]:
        queries, hits = recall.synced()
        images, captions = queries
        assert (images, captions) == (len(num_captions), num_captions.sum())
        shares = [[count / (UNIT * n) for count in row] for row, n in zip(hits, queries, strict=True)]
        names = ("image_to_text", "text_to_image")
        chances = [
            [chance_of_any(num_captions, captions, depth) for depth in DEPTHS],
            [min(1.0, depth / images) for depth in DEPTHS],
        ]
        first = DEPTHS.index(1)
        mean, mean_chance = (shares[0][first] + shares[1][first]) / 2, (chances[0][first] + chances[1][first]) / 2
        rows = [("recall_at_1", mean, mean_chance, images)]
        for name, values, by_chance, n in zip(names, shares, chances, queries, strict=True):
            rows += [
                (f"{name}_recall_at_{depth}", value, chance, n)
                for depth, value, chance in zip(DEPTHS, values, by_chance, strict=True)
            ]
        return [self._record(what, prompts, value, chance, n, images) for what, value, chance, n in rows]

    def _record(self, what: str, prompts: str, value: float, chance: float, n: int, images: int) -> Record:
        low, high = wilson(value * images, images)
        return Record(
            what=what, value=value, low=low, high=high, chance=chance, n=n, task=self.task.name, split=self.task.split,
            prompts=prompts, precision=self.precision, transform=self._transform, names_from=self.task.source,
        )  # fmt: skip


def _image(task: RetrievalTask, size: int, k: int) -> Tensor:
    return task.image(k, size)
