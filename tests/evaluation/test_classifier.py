"""The classifier equals open_clip's on the same random towers."""

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from clip_lightning.evaluation.classifier import ClassifierBuilder
from clip_lightning.evaluation.inference import inference
from clip_lightning.tokenizer import TokenBatch

CPU = torch.device("cpu")
CLASSES = ["tench", "goldfish", "great white shark", "tiger {shark}", "hammerhead"]
TEMPLATES = ["a photo of a {c}.", "art of the {c}.", "{c}"]


class OpenClipTowers(nn.Module):
    """open_clip's model under the names of ours; its text tower finds the end token by itself."""

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self.peer = peer

    def encode_text(self, tokens: Tensor, lengths: Tensor, normalize: bool = True) -> Tensor:
        return self.peer.encode_text(tokens, normalize=normalize)


@pytest.fixture(scope="module")
def peer() -> nn.Module:
    torch.manual_seed(0)
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()


def peer_tokenizer(texts: list[str]) -> TokenBatch:
    tokens = open_clip.SimpleTokenizer(context_length=24)(texts)
    return TokenBatch(tokens.numpy(), (tokens != 0).sum(1).numpy(), 0)


@pytest.mark.parametrize("batch", [1, 4, 256])
def test_equals_open_clips_classifier(peer: nn.Module, batch: int) -> None:
    templates = [lambda c, t=template: t.replace("{c}", c) for template in TEMPLATES]
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    expected = open_clip.build_zero_shot_classifier(peer, tokenizer, CLASSES, templates).T
    ours = OpenClipTowers(peer)
    builder = ClassifierBuilder("fish", CLASSES, TEMPLATES, batch)
    with inference(ours, CPU):
        weights, vector = builder.build(ours, peer_tokenizer, CPU)
    assert vector is None
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


def test_token_ids_are_made_once_per_tokenizer(model: Any, tokenizer: Any) -> None:
    encoded: list[str] = []

    def counting(texts: list[str]) -> TokenBatch:
        encoded.extend(texts)
        return tokenizer(texts)

    builder = ClassifierBuilder("fish", CLASSES, TEMPLATES)
    with inference(model, CPU):
        first = builder.build(model, counting, CPU).weights
        torch.testing.assert_close(builder.build(model, counting, CPU).weights, first, atol=0, rtol=0)
        assert len(encoded) == len(CLASSES) * len(TEMPLATES)
        builder.build(model, tokenizer, CPU)
        assert builder.build(model, counting, CPU).weights.shape == first.shape
    assert len(encoded) == 2 * len(CLASSES) * len(TEMPLATES)


def test_classes_of_equal_prompts_have_equal_logits(model: Any, tokenizer: Any) -> None:
    names = ["crane", "maillot", "tench", "crane", "a much longer name", "maillot", "crane"]
    features = torch.nn.functional.normalize(torch.randn(9, 16), dim=-1)
    with inference(model, CPU):
        classifier = ClassifierBuilder("birds", names, TEMPLATES, batch=4).build(model, tokenizer, CPU)
        plain = ClassifierBuilder("birds", ["tench"], TEMPLATES).build(model, tokenizer, CPU)
    assert classifier.weights.shape == (4, 16)
    cosines = classifier.cosines(features)
    for group in ((0, 3, 6), (1, 5)):
        assert all(torch.equal(cosines[:, group[0]], cosines[:, k]) for k in group)
    torch.testing.assert_close(cosines[:, 2], plain.cosines(features)[:, 0])
