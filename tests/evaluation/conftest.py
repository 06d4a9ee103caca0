"""A model and a tokenizer so small that tests can compute their features by hand."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clip_lightning.data.batches import Batch
from clip_lightning.evaluation.tasks import ZeroShotTask
from clip_lightning.tokenizer import TokenBatch


class CharacterTokenizer:
    """Each character is a token; 1 starts and 2 ends a text."""

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        encoded = [[1, *(3 + ord(character) % 60 for character in text), 2] for text in texts]
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        tokens = np.zeros((len(texts), -(-lengths.max() // 8) * 8), dtype=np.int64)
        for row, ids in zip(tokens, encoded, strict=True):
            row[: len(ids)] = ids
        return TokenBatch(tokens, lengths, 0)


class SmallTowers(nn.Module):
    """Two linear towers with the interface of CLIP; dropout makes a forgotten evaluation mode visible."""

    def __init__(self, embed_dim: int = 16) -> None:
        super().__init__()
        self.vision = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, embed_dim))
        self.text = nn.Sequential(nn.EmbeddingBag(64, embed_dim), nn.Dropout(0.5), nn.Linear(embed_dim, embed_dim))
        self.log_logit_scale = nn.Parameter(torch.tensor([3.0]))

    def current_logit_scale(self) -> Tensor:
        return self.log_logit_scale.detach().exp()

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        features = self.vision(images.float() / 255 - 0.5)
        return nn.functional.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, lengths: Tensor, normalize: bool = True) -> Tensor:
        kept = torch.arange(tokens.shape[1]) < lengths[:, None]
        bag = torch.nn.functional.embedding_bag(
            tokens, self.text[0].weight, per_sample_weights=kept.float(), mode="sum"
        )
        features = self.text[2](self.text[1](bag))
        return nn.functional.normalize(features, dim=-1) if normalize else features


@pytest.fixture
def tokenizer() -> CharacterTokenizer:
    return CharacterTokenizer()


@pytest.fixture
def model() -> SmallTowers:
    torch.manual_seed(0)
    return SmallTowers()


COLORS = ("red", "green", "blue", "yellow", "black", "white", "grey")


def make_task(num_samples: int = 103, num_classes: int = 7, names: Sequence[str] = COLORS) -> ZeroShotTask:
    """Random images of random classes."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (num_samples, 8, 8, 3), dtype=np.uint8)
    labels = generator.integers(0, num_classes, num_samples)
    return ZeroShotTask("noise", names[:num_classes], ["a {c} thing", "the {c}"], labels, lambda k: images[k])


@pytest.fixture
def task() -> ZeroShotTask:
    return make_task()


def make_pairs(ids: Sequence[int], batch: int) -> list[Batch]:
    """Batches of random images, each with a caption of its own."""
    batches = []
    for start in range(0, len(ids), batch):
        chunk = list(ids[start : start + batch])
        images = [np.random.default_rng(k).integers(0, 256, (3, 8, 8), dtype=np.uint8) for k in chunk]
        tokens, lengths, num_cut = CharacterTokenizer()([f"caption number {k * 37}" for k in chunk])
        sample_ids = torch.tensor(chunk)
        batches.append(
            Batch(
                images=torch.from_numpy(np.stack(images)),
                tokens=torch.from_numpy(tokens),
                lengths=torch.from_numpy(lengths),
                sample_ids=sample_ids,
                positions=sample_ids,
                num_cut=num_cut,
            )
        )
    return batches


@pytest.fixture
def pairs_of() -> Callable[..., list[Batch]]:
    return make_pairs
