"""The keys by which pairs of a batch are duplicates of each other."""

import torch

from clip_lightning.training.pair_keys import pair_keys


def test_equal_captions_share_a_key_whatever_their_padding_and_no_others_do() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (400, 8), generator=generator)
    lengths = torch.randint(1, 9, (400,), generator=generator)
    tokens[200:], lengths[200:] = tokens[:200], lengths[:200]
    tokens[200:][torch.arange(8) >= lengths[200:, None]] = 7  # another padding, which is also a token
    ids = torch.arange(400)
    short, long = pair_keys(tokens, lengths, ids), pair_keys(torch.nn.functional.pad(tokens, (0, 5)), lengths, ids)
    assert torch.equal(short, long)
    assert torch.equal(short[:, 1], ids)
    captions = [tuple(row[:length]) for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    assert short[:200, 0].tolist() == short[200:, 0].tolist()
    assert len(short[:, 0].unique()) == len(set(captions)) < 400


def test_the_order_of_tokens_counts() -> None:
    tokens = torch.tensor([[3, 4, 5], [5, 4, 3], [3, 4, 0]])
    assert len(pair_keys(tokens, torch.tensor([3, 3, 3]), torch.arange(3))[:, 0].unique()) == 3
