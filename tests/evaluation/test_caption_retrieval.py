"""Retrieval with several captions an image against CLIP_benchmark's own functions and the plain computation."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_retrieval
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_lightning.data.images.decode import decode_eval
from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation import recall
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.caption_retrieval import CaptionRetrievalEvaluator
from clip_lightning.evaluation.counts import UNIT
from clip_lightning.evaluation.recall import CaptionRecall, chance_of_any, count_recall, hits_of_any
from clip_lightning.evaluation.retrieval_tasks import PAPER_PREFIX, RetrievalTask

CPU = torch.device("cpu")
DEPTHS = (1, 5, 10)


def make_task(num: int = 40, seed: int = 0, read: Callable[[int], Any] | None = None) -> RetrievalTask:
    """Random images with two to seven captions of their own."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (num, 8, 8, 3), dtype=np.uint8)
    captions = [[f"caption {k * 7 + j} of {k}" for j in range(2 + k % 6)] for k in range(num)]
    return RetrievalTask("noise", captions, read or images.__getitem__)


def values(evaluator: CaptionRetrievalEvaluator, model: Any, tokenizer: Any) -> dict[str, float]:
    return {record.what: record.value for record in evaluator.run(model, tokenizer, CPU)}


def of_clip_benchmark(task: RetrievalTask, model: Any, tokenizer: Any, batch: int = 16) -> dict[str, float]:
    class Ours:
        """The tokenizer's ids and lengths through one tensor, which is all that CLIP_benchmark hands over."""

        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            return model.encode_image(images)

        def encode_text(self, packed: torch.Tensor) -> torch.Tensor:
            return model.encode_text(packed[:, 1:], packed[:, 0])

    def tokens(texts: list[str]) -> torch.Tensor:
        encoded = tokenizer(texts)
        return torch.from_numpy(np.concatenate([encoded.lengths[:, None], encoded.tokens], axis=1))

    images = torch.stack([decode_eval(task.read(k), 8) for k in range(task.num_samples)])
    loader = [(images[k : k + batch], task.captions[k : k + batch]) for k in range(0, task.num_samples, batch)]
    model.eval()
    return zeroshot_retrieval.evaluate(Ours(), loader, tokens, "cpu", amp=False, recall_k_list=list(DEPTHS))


def test_equals_clip_benchmarks_recalls(model: Any, tokenizer: Any) -> None:
    task = make_task()
    ours = values(CaptionRetrievalEvaluator(task, 8, batch=7), model, tokenizer)
    theirs = of_clip_benchmark(task, model, tokenizer)
    for depth in DEPTHS:
        assert ours[f"image_to_text_recall_at_{depth}"] == pytest.approx(theirs[f"text_retrieval_recall@{depth}"])
        assert ours[f"text_to_image_recall_at_{depth}"] == pytest.approx(theirs[f"image_retrieval_recall@{depth}"])
    both = (ours["image_to_text_recall_at_1"] + ours["text_to_image_recall_at_1"]) / 2
    assert ours["recall_at_1"] == pytest.approx(both)
    assert 0 < ours["image_to_text_recall_at_10"] < 1


def test_records_hold_queries_chance_and_prompts(model: Any, tokenizer: Any) -> None:
    task = replace(make_task(), prefixes={"captions": "", "photo": PAPER_PREFIX})
    records = CaptionRetrievalEvaluator(task, 8).run(model, tokenizer, CPU)
    assert len(records) == 14
    by = {(record.what, record.prompts): record for record in records}
    captions = int(task.num_captions.sum())
    assert by["image_to_text_recall_at_5", "photo"].n == 40
    assert by["text_to_image_recall_at_5", "captions"].n == captions
    assert by["text_to_image_recall_at_5", "captions"].chance == 5 / 40
    assert all(record.low <= record.value <= record.high for record in records)
    assert by["recall_at_1", "captions"].value != by["recall_at_1", "photo"].value


def test_collapsed_features_score_chance(model: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        model.vision[-1].weight.zero_()
        model.text[-1].weight.zero_()
    for record in CaptionRetrievalEvaluator(make_task(), 8).run(model, tokenizer, CPU):
        assert record.value == pytest.approx(record.chance, abs=1e-6), record.what


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_share_of_a_hit_is_the_share_of_the_orders_of_tied_candidates(data: st.DataObject) -> None:
    ahead, tied = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 12))
    own, depth = data.draw(st.integers(1, tied)), data.draw(st.sampled_from(DEPTHS))
    free = min(max(depth - ahead, 0), tied)
    expected = 1 - math.comb(tied - own, free) / math.comb(tied, free)
    (found,) = hits_of_any(depth, *(torch.tensor([number]) for number in (ahead, tied, own)))
    assert found / UNIT == pytest.approx(expected, abs=2e-6)


def test_equal_captions_share_their_places(model: Any, tokenizer: Any) -> None:
    task = make_task(12)
    same = replace(task, captions=[["one caption", f"caption {k}"] for k in range(12)])
    found = values(CaptionRetrievalEvaluator(same, 8, batch=5), model, tokenizer)
    reversed_ = replace(same, captions=same.captions[::-1], read=lambda k: task.read(11 - k))
    assert found == pytest.approx(values(CaptionRetrievalEvaluator(reversed_, 8, batch=5), model, tokenizer))


def test_an_unreadable_image_is_left_out_with_its_captions(model: Any, tokenizer: Any) -> None:
    task = make_task()

    def read(k: int) -> Any:
        if k == 3:
            raise BadSample("truncated image")
        return task.read(k)

    evaluator = CaptionRetrievalEvaluator(replace(task, read=read), 8, batch=7)
    records = evaluator.run(model, tokenizer, CPU)
    rest = [k for k in range(40) if k != 3]
    without = replace(task, captions=[task.captions[k] for k in rest], read=lambda k: task.read(rest[k]))
    expected = CaptionRetrievalEvaluator(without, 8, batch=7).run(model, tokenizer, CPU)
    assert [replace(record, note="") for record in records] == expected
    assert records[0].note == (
        "1 of 40 images could not be read and are not counted; the first is image 3 (truncated image)."
    )
    assert {record.n for record in records} == {39, int(task.num_captions.sum()) - len(task.captions[3])}


def test_images_are_read_once_where_they_fit(model: Any, tokenizer: Any) -> None:
    task, reads = make_task(), []

    def read(k: int) -> Any:
        reads.append(k)
        return task.read(k)

    kept = CaptionRetrievalEvaluator(replace(task, read=read), 8, batch=16)
    assert values(kept, model, tokenizer) == values(kept, model, tokenizer)
    assert sorted(reads) == list(range(40))
    reads.clear()
    other = CaptionRetrievalEvaluator(replace(task, read=read), 8, batch=16, budget=MemoryBudget(0))
    assert values(other, model, tokenizer) == values(other, model, tokenizer)
    assert len(reads) == 80


def test_features_that_are_not_numbers_and_tasks_without_pairs_are_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="retrieval needs two"):
        RetrievalTask("one", [["a"]], lambda k: b"")
    with pytest.raises(DataError, match="image 1 has no caption"):
        RetrievalTask("none", [["a"], []], lambda k: b"")
    with torch.no_grad():
        model.vision[-1].weight[0, 0] = float("inf")
    with pytest.raises(UserError, match="NaN or infinite"):
        CaptionRetrievalEvaluator(make_task(), 8).run(model, tokenizer, CPU)


def unit(num: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(num, width, generator=generator), dim=-1)


def plain_recall(images: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor) -> list[list[float]]:
    """By sorting every row of all scores."""
    scores = images @ texts.T
    found = []
    for matrix, partner_of in ((scores, owner), (scores.T, torch.arange(len(images)))):
        best = matrix.topk(max(DEPTHS), dim=1).indices
        query = torch.arange(len(images)) if len(matrix) == len(images) else owner
        is_partner = partner_of[best] == query[:, None]
        found.append([is_partner[:, :depth].any(1).double().mean().item() for depth in DEPTHS])
    return found


@pytest.mark.parametrize("block", [1 << 8, 1 << 14, 1 << 30])
def test_blocks_give_the_recalls_of_all_scores_at_once(block: int) -> None:
    images, noise = unit(200, 12, 0), unit(1000, 12, 1)
    owner = torch.arange(1000) % 200
    texts = torch.nn.functional.normalize(images[owner] + 1.5 * noise, dim=-1)
    counted = CaptionRecall(DEPTHS)
    count_recall(counted, images, texts, torch.arange(1000), owner, block)
    found = [[hits / UNIT / num for hits in row] for row, num in zip(counted.hits.tolist(), (200, 1000), strict=True)]
    assert found == [pytest.approx(row) for row in plain_recall(images, texts, owner)]
    assert counted.compute()["recall_at_1"] == pytest.approx((found[0][0] + found[1][0]) / 2)


def memory(kind: str) -> float:
    """MiB of this process: VmRSS, or VmHWM, its peak."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[kind].split()[0]) / 1024


@pytest.mark.slow
def test_memory_is_that_of_a_block_and_recalls_those_of_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 50,000 images with 5 captions, one of `share` ranks counts its blocks: sorting all scores is too slow."""
    num, share = 50_000, 1000
    images, owner = unit(num, 16, 0), torch.arange(num).repeat_interleave(5)
    texts = torch.nn.functional.normalize(images[owner] + unit(num * 5, 16, 1), dim=-1)
    monkeypatch.setattr(recall, "rank_and_world", lambda: (1, share))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = memory("VmRSS")
    counted = CaptionRecall(DEPTHS)
    count_recall(counted, images, texts, torch.arange(num * 5), owner)
    peak = memory("VmHWM") - before
    for direction, (asking, found, label, candidates) in enumerate(
        [(images, texts, torch.arange(num), owner), (texts, images, owner, torch.arange(num))]
    ):
        size = recall.BLOCK["cpu"] // len(found)
        rows = torch.cat([torch.arange(k, k + size) for k in range(size, len(asking) - size, size * share)])
        best = [(asking[part] @ found.T).argsort(dim=1, descending=True)[:, :10] for part in rows.split(size)]
        is_partner = candidates[torch.cat(best)] == label[rows, None]
        assert counted.queries[direction] == len(rows)
        assert (counted.hits[direction] // UNIT).tolist() == [
            is_partner[:, :depth].any(1).sum().item() for depth in DEPTHS
        ]
    assert peak < 200, f"all scores would be {num * num * 5 * 4 / 2**20:,.0f} MiB"
    print(f"{num} x 5: peak {peak:.0f} MiB beyond the features; queries {counted.queries.tolist()}")


def test_chance_is_that_of_drawing_candidates() -> None:
    generator = np.random.default_rng(0)
    draws = [generator.permutation(30)[:5] for _ in range(5_000)]
    assert chance_of_any([3], 30, 5) == pytest.approx(np.mean([(draw < 3).any() for draw in draws]), abs=0.025)
    assert chance_of_any([1, 1], 4, 5) == 1.0
