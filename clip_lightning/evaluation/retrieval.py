"""Held-out pairs: the contrastive loss and retrieval over a fixed number of candidates.

Both depend on how many candidates a pair competes with, so pairs are compared within groups of exactly 1,024, whatever
the batch of training: the numbers of runs with different batches can be compared. Pairs beyond the last whole group
take no part; with fewer pairs than one group there is one group of them all, and the loss is named by its true size.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clip_lightning.data.batches import Batch
from clip_lightning.distributed import gather_rows
from clip_lightning.errors import DataError
from clip_lightning.evaluation.inference import cosines, inference, refuse_broken
from clip_lightning.evaluation.metrics import normal_interval, ranks_of, wilson
from clip_lightning.evaluation.zero_shot import CACHE_BYTES
from clip_lightning.model.clip import CLIP
from clip_lightning.records import Record
from clip_lightning.tokenizer import Tokenizer

DEPTHS = (1, 5, 10)

# Shape suffixes: n pairs of this rank, N of all ranks, K candidates of a group, D embedding


class RetrievalEvaluator:
    """`val_loss_1024` and recall at 1, 5 and 10 in both directions, on validation pairs."""

    def __init__(
        self,
        batches: Iterable[Batch],
        *,
        candidates: int = 1024,
        precision: str = "fp32",
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Args.

        batches: this rank's validation pairs in a fixed order; iterated anew in each run.
        candidates: K, pairs that compete with each other.
        precision: of the towers: fp32, bf16, fp16; logits are float32.
        cache_bytes: the batches are kept between runs where their images take no more.
        """
        self.batches, self.candidates, self.precision, self.cache_bytes = batches, candidates, precision, cache_bytes

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        """Records, the same on every rank; the batches hold token ids, so that `tokenizer` is not asked.

        `val_loss_K` is the symmetric softmax loss in nats at the model's logit scale, for every model: a sigmoid
        model's values can be compared with a softmax model's. `recall_at_1` is the mean of both directions.
        Raises UserError when features are NaN or infinite, DataError when there are fewer than two pairs.
        """
        with inference(model, device, self.precision):
            images_ND, texts_ND = self._features(model, device)
            scale = model.current_logit_scale()
        pairs = len(images_ND)
        if pairs < 2:
            raise DataError(f"data.validation has {pairs} pairs, and a contrastive loss needs two or more.")
        group = min(self.candidates, pairs)
        losses, ranks = [], []
        for start in range(0, pairs - group + 1, group):
            logits_KK = scale * cosines(images_ND[start : start + group], texts_ND[start : start + group])
            labels = torch.arange(group, device=device)
            both = logits_KK, logits_KK.T
            losses.append(torch.stack([cross_entropy(x, labels, reduction="none") for x in both]).mean(0))
            ranks.append(torch.stack([ranks_of(x, labels) for x in both]))
        return self._records(torch.cat(losses), torch.cat(ranks, 1), group)

    def _features(self, model: CLIP, device: torch.device) -> tuple[Tensor, Tensor]:
        """Unit features [N, D] of all ranks' pairs, float32, in the order of their positions; repeats left out."""
        images, texts, positions = [], [], []
        kept, kept_bytes = [], 0
        for batch in self.batches:
            images.append(model.encode_image(batch.images.to(device)))
            texts.append(model.encode_text(batch.tokens.to(device), batch.lengths.to(device)))
            positions.append(batch.positions.to(device))
            kept_bytes += batch.images.nbytes
            if kept_bytes <= self.cache_bytes:
                kept.append(batch)
        if len(kept) == len(images):
            self.batches = kept
        images_ND, texts_ND, positions_N = (gather_rows(torch.cat(parts)) for parts in (images, texts, positions))
        positions_N, order = positions_N.sort(stable=True)
        order = order[positions_N.diff(prepend=positions_N[:1] - 1) != 0]
        images_ND, texts_ND = images_ND[order], texts_ND[order]
        broken = int((~(images_ND.isfinite() & texts_ND.isfinite())).any(1).sum())
        refuse_broken(broken, len(images_ND), "data.validation")
        return images_ND, texts_ND

    def _records(self, losses_N: Tensor, ranks_2N: Tensor, group: int) -> list[Record]:
        recalls = [("recall_at_1", 1, ranks_2N)]
        for direction, ranks_N in zip(("image_to_text", "text_to_image"), ranks_2N, strict=True):
            recalls += [(f"{direction}_recall_at_{depth}", depth, ranks_N) for depth in DEPTHS]
        n, loss = len(losses_N), losses_N.double().mean().item()
        records = [self._record(f"val_loss_{group}", loss, normal_interval(losses_N), math.log(group), n)]
        for what, depth, ranks in recalls:
            value = (ranks < depth).double().mean().item()
            # The two directions of a pair depend on each other, so the interval counts pairs, never queries.
            records.append(self._record(what, value, wilson(value * n, n), min(1.0, depth / group), n))
        return records

    def _record(self, what: str, value: float, interval: tuple[float, float], chance: float, n: int) -> Record:
        return Record(
            what=what,
            value=value,
            low=interval[0],
            high=interval[1],
            n=n,
            chance=chance,
            task="validation",
            split="validation",
            precision=self.precision,
        )
