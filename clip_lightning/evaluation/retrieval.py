"""Held-out pairs: the contrastive loss and retrieval over a fixed number of candidates.

Both depend on how many candidates a pair competes with, so pairs are compared within groups of exactly 1,024, whatever
the batch of training: the numbers of runs with different batches can be compared. Pairs beyond the last whole group
take no part; with fewer pairs than one group there is one group of them all, and the loss is named by its size. Damaged
pairs are left out: the loss keeps its name, and `n` is what was left.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clip_lightning.data.batches import Batch
from clip_lightning.distributed import all_reduce_sum, gather_rows, rank_and_world
from clip_lightning.errors import DataError
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.inference import cosines, inference, refuse_broken
from clip_lightning.evaluation.metrics import UNIT, PairRecall, normal_interval, wilson
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
        batch: int = 256,
        precision: str = "fp32",
        budget: MemoryBudget | None = None,
    ) -> None:
        """Args.

        batches: this rank's validation pairs in a fixed order; iterated in each run.
        candidates: K, pairs that compete with each other.
        batch: pairs per forward on a rank.
        precision: of the towers: fp32, bf16, fp16; logits are float32.
        budget: of memory, shared with other evaluators; the batches are kept between runs where they fit.
        """
        self.batches, self.candidates, self.batch, self.precision = batches, candidates, batch, precision
        self.budget = budget or MemoryBudget()
        self._kept: list[Batch] | None = None
        self._keeps = True
        self._chosen = 0  # pairs, damaged ones included

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        """Records, the same on every rank; the batches hold token ids, so `tokenizer` is not used.

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
        starts = range(0, pairs - group + 1, group)
        losses_N = torch.zeros(len(starts) * group, device=device)
        recall = PairRecall(DEPTHS).to(device)
        rank, world = rank_and_world()
        for start in starts[rank::world]:
            members = slice(start, start + group)
            logits_KK = scale * cosines(images_ND[members], texts_ND[members])
            labels = torch.arange(group, device=device)
            both = [cross_entropy(logits, labels, reduction="none") for logits in (logits_KK, logits_KK.T)]
            losses_N[members] = torch.stack(both).mean(0)
            recall.update(logits_KK)
        return self._records(all_reduce_sum(losses_N), recall, group)

    def _features(self, model: CLIP, device: torch.device) -> tuple[Tensor, Tensor]:
        """Unit features [N, D] of all ranks' pairs, float32, in the order of their positions, without repeats."""
        images, texts, positions = [], [], []
        kept: list[Batch] = []
        for batch in self.batches if self._kept is None else self._kept:
            images += [model.encode_image(part.to(device)) for part in batch.images.split(self.batch)]
            parts = zip(batch.tokens.split(self.batch), batch.lengths.split(self.batch), strict=True)
            texts += [model.encode_text(tokens.to(device), lengths.to(device)) for tokens, lengths in parts]
            positions.append(batch.positions.to(device))
            if self._keeps and self._kept is None:
                self._keep(batch, kept)
        if self._keeps and self._kept is None:
            self._kept = kept
        if not images:
            return torch.zeros(0, 1), torch.zeros(0, 1)
        images_ND, texts_ND, positions_N = (gather_rows(torch.cat(rows)) for rows in (images, texts, positions))
        positions_N, order = positions_N.sort(stable=True)
        is_new = positions_N.diff(prepend=positions_N[:1] - 1) != 0
        self._chosen = int(is_new.sum())
        order = order[is_new & (positions_N >= 0)]
        images_ND, texts_ND = images_ND[order], texts_ND[order]
        broken = int((~(images_ND.isfinite() & texts_ND.isfinite())).any(1).sum())
        refuse_broken(broken, len(images_ND), "data.validation")
        return images_ND, texts_ND

    def _keep(self, batch: Batch, kept: list[Batch]) -> None:
        """Adds a batch to those that are kept; drops all of them where the budget does not suffice."""
        if self.budget.reserve(batch.images.nbytes):
            kept.append(batch)
        else:
            self.budget.release(sum(other.images.nbytes for other in kept))
            kept.clear()
            self._keeps = False

    def _records(self, losses_N: Tensor, recall: PairRecall, group: int) -> list[Record]:
        n, loss = len(losses_N), losses_N.double().mean().item()
        name = f"val_loss_{min(self.candidates, self._chosen)}"
        records = [self._record(name, loss, normal_interval(losses_N), math.log(group), n)]
        num_pairs, hits = recall.synced()
        assert num_pairs == n
        both = sum(row[DEPTHS.index(1)] for row in hits)
        found = [("recall_at_1", 1, both, 2 * UNIT)]
        for direction, row in zip(("image_to_text", "text_to_image"), hits, strict=True):
            found += [
                (f"{direction}_recall_at_{depth}", depth, count, UNIT) for depth, count in zip(DEPTHS, row, strict=True)
            ]
        for what, depth, count, unit in found:
            # The two directions of a pair depend on each other, so the interval counts pairs, never queries.
            interval, chance = wilson(count / unit, n), min(1.0, depth / group)
            records.append(self._record(what, count / (unit * n), interval, chance, n))
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
