"""Held-out pairs that are shown: the best and the worst by the rank of a pair's own caption."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clip_lightning.data.batches import Batch
from clip_lightning.errors import UserError
from clip_lightning.evaluation.pair_examples import pair_examples
from clip_lightning.model.clip import CLIP

IMAGES = torch.eye(6)
TEXTS = torch.eye(6)
TEXTS[4] = torch.tensor([0.0, 0, 0, 0, -1, 0])  # the own caption of image 4 is the last one for it
CAPTIONS = ["red", "green", "blue", "white", "black", "lost"]


class Table(nn.Module):
    """A model whose features are rows of tables, chosen by the first pixel and the first token."""

    def __init__(self, texts: Tensor = TEXTS) -> None:
        super().__init__()
        self.texts = texts

    def encode_image(self, images: Tensor) -> Tensor:
        return IMAGES[images[:, 0, 0, 0].long()]

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return normalize(self.texts[tokens[:, 0]], dim=1)

    def current_logit_scale(self) -> Tensor:
        return torch.tensor(10.0)


def pairs(tokens: list[int]) -> Batch:
    """Pair k has image k; the last one cannot be read."""
    count = len(tokens)
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4)
    positions = torch.arange(count)
    positions[-1] = -count
    ids = torch.arange(count)
    return Batch(images, torch.tensor(tokens)[:, None], torch.ones(count, dtype=torch.long), ids, positions, 0)


def shown(tokens: list[int], captions: list[str], model: Table | None = None) -> list[tuple[str, str, int, int]]:
    rows = pair_examples(
        cast(CLIP, model or Table()), pairs(tokens), captions, torch.device("cpu"), num_each=2, batch=2
    )
    assert all(row.correct is None or row.prompts[row.correct] == row.label for row in rows)
    assert all(row.image.shape == (4, 4, 3) for row in rows)
    return [(row.task.split()[0], row.label, row.rank, row.num_classes) for row in rows]


def test_the_best_come_first_then_the_worst_and_a_pair_that_cannot_be_read_never() -> None:
    found = shown([0, 1, 2, 3, 4, 5], CAPTIONS)
    assert [kind for kind, *_ in found] == ["best", "best", "worst", "worst"]
    assert found[2] == ("worst", "black", 5, 5)
    assert {label for _, label, rank, _ in found if rank == 1} == {"red", "green", "white"}


def test_a_caption_that_several_pairs_have_counts_once() -> None:
    found = shown([0, 0, 2, 3, 4, 5], ["red", "red", *CAPTIONS[2:]])
    assert {num_classes for *_, num_classes in found} == {4}
    assert found[0] == ("best", "red", 1, 4)


def test_too_few_pairs_show_nothing_and_broken_features_are_refused() -> None:
    assert shown([0, 1], CAPTIONS[:2]) == []
    with pytest.raises(UserError, match="NaN or infinite"):
        shown([0, 1, 2], CAPTIONS[:3], Table(TEXTS * torch.nan))
