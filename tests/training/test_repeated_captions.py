"""The share of repeated captions is counted over the whole first batch, and reported when it is large."""

import math

import pytest
import torch

from clip_lightning.training.repeated_captions import count_repeats


def tokens(captions: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.zeros(len(captions), 6, dtype=torch.int64)
    for row, ids in zip(rows, captions, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return rows, torch.tensor([len(ids) for ids in captions])


def test_equal_captions_are_counted_and_padding_is_not_part_of_them() -> None:
    rows, lengths = tokens([[1, 5, 2], [1, 5, 2], [1, 6, 2], [1, 5, 2], [1, 5, 2, 0], [1, 5, 2]])
    rows[1, 3:] = 9
    found = count_repeats(rows, lengths)
    assert found.num_pairs == 6
    assert found.share == pytest.approx(4 / 6)
    assert found.smallest_loss == pytest.approx(4 * math.log(4) / 6)


def test_the_smallest_loss_is_that_of_a_perfect_model() -> None:
    rows, lengths = tokens([[1, k, 2] for k in (3, 3, 3, 4, 5, 5, 6, 7)])
    features = torch.nn.functional.one_hot(rows[:, 1], 8).float()
    logits = 100 * features @ features.T
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(8))
    assert count_repeats(rows, lengths).smallest_loss == pytest.approx(loss.item(), rel=1e-5)
