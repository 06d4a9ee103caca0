"""Retrieval and the validation loss against open_clip's own metrics and loss."""

import math
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from open_clip_train.train import get_clip_metrics

from clip_lightning.data.batches import Batch
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.retrieval import RetrievalEvaluator

CPU = torch.device("cpu")


Pairs = Callable[..., list[Batch]]


def values(evaluator: RetrievalEvaluator, model: Any, tokenizer: Any) -> dict[str, float]:
    return {record.what: record.value for record in evaluator.run(model, tokenizer, CPU)}


def features(model: Any, pairs_of: Pairs, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    model.eval()
    (batch,) = pairs_of(ids, batch=len(ids))
    with torch.no_grad():
        return model.encode_image(batch.images), model.encode_text(batch.tokens, batch.lengths)


def test_equals_open_clips_metrics_and_loss(model: Any, tokenizer: Any, pairs_of: Pairs) -> None:
    ours = values(RetrievalEvaluator(pairs_of(range(60), batch=13)), model, tokenizer)
    images, texts = features(model, pairs_of, list(range(60)))
    scale = model.log_logit_scale.exp().detach()
    metrics = get_clip_metrics(images, texts, scale)
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            assert ours[f"{direction}_recall_at_{k}"] == pytest.approx(metrics[f"{direction}_R@{k}"])
    both = (metrics["image_to_text_R@1"] + metrics["text_to_image_R@1"]) / 2
    assert ours["recall_at_1"] == pytest.approx(both)
    loss = open_clip.loss.ClipLoss()(images, texts, scale).item()
    assert ours["val_loss_60"] == pytest.approx(loss, rel=1e-5)


def test_pairs_compete_within_complete_groups_only(model: Any, tokenizer: Any, pairs_of: Pairs) -> None:
    records = RetrievalEvaluator(pairs_of(range(70), batch=9), candidates=32).run(model, tokenizer, CPU)
    images, texts = features(model, pairs_of, list(range(64)))
    scale = model.log_logit_scale.exp().detach()
    losses = [open_clip.loss.ClipLoss()(images[k : k + 32], texts[k : k + 32], scale).item() for k in (0, 32)]
    assert records[0].what == "val_loss_32"
    assert records[0].value == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert records[0].chance == math.log(32)
    assert {(record.n, record.task, record.split) for record in records} == {(64, "validation", "validation")}
    assert {record.chance for record in records if record.what.endswith("recall_at_1")} == {1 / 32}
    assert all(record.low <= record.value <= record.high for record in records)


def test_neither_the_batches_nor_repeats_of_padding_change_a_value(model: Any, tokenizer: Any, pairs_of: Pairs) -> None:
    plain = values(RetrievalEvaluator(pairs_of(range(40), batch=40)), model, tokenizer)
    mixed = pairs_of([*range(20, 40), *range(20), 0, 0, 7], batch=6)
    assert values(RetrievalEvaluator(mixed), model, tokenizer) == pytest.approx(plain, rel=1e-5)


def test_batches_are_loaded_once_where_they_fit(model: Any, tokenizer: Any, pairs_of: Pairs) -> None:
    class Loader:
        times = 0

        def __iter__(self) -> Any:
            self.times += 1
            return iter(pairs_of(range(40), batch=8))

    loader = Loader()
    kept = RetrievalEvaluator(loader)
    assert values(kept, model, tokenizer) == values(kept, model, tokenizer)
    assert loader.times == 1
    not_kept = RetrievalEvaluator(loader, budget=MemoryBudget(40 * 3 * 64 - 1))
    assert values(not_kept, model, tokenizer) == values(not_kept, model, tokenizer)
    assert loader.times == 3


def test_features_that_are_not_numbers_are_refused(model: Any, tokenizer: Any, pairs_of: Pairs) -> None:
    with torch.no_grad():
        model.vision[-1].weight[0, 0] = float("inf")
    with pytest.raises(UserError, match="NaN or infinite"):
        values(RetrievalEvaluator(pairs_of(range(40), batch=8)), model, tokenizer)


def test_one_pair_is_refused(model: Any, tokenizer: Any, pairs_of: Pairs) -> None:
    with pytest.raises(DataError, match="1 pairs"):
        values(RetrievalEvaluator(pairs_of([3], batch=8)), model, tokenizer)
