"""The classifier equals open_clip's on the same random towers."""

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from clip_lightning.evaluation.classifier import Classifier, ClassifierBuilder
from clip_lightning.evaluation.inference import inference
from clip_lightning.evaluation.weights_hash import weights_hash
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


class PeerTokenizer:
    """open_clip's, whose tower takes texts of the whole context only."""

    pad_to_context = True

    def __call__(self, texts: list[str]) -> TokenBatch:
        tokens = open_clip.SimpleTokenizer(context_length=24)(texts)
        return TokenBatch(tokens.numpy(), (tokens != 0).sum(1).numpy(), 0)


@pytest.mark.parametrize("batch", [1, 4, 256])
def test_equals_open_clips_classifier(peer: nn.Module, batch: int) -> None:
    templates = [lambda c, t=template: t.replace("{c}", c) for template in TEMPLATES]
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    expected = open_clip.build_zero_shot_classifier(peer, tokenizer, CLASSES, templates).T
    ours = OpenClipTowers(peer)
    builder = ClassifierBuilder(batch)
    fish = builder.add("fish", CLASSES, TEMPLATES)
    with inference(ours, CPU):
        weights, vector = builder.build(ours, PeerTokenizer(), CPU)[fish]
    assert vector is None
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)


class Counting:
    """A tokenizer that keeps what it was called with."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.texts = tokenizer, list[str]()

    def __call__(self, texts: list[str]) -> TokenBatch:
        self.texts += texts
        return self.tokenizer(texts)


def test_token_ids_are_made_once_per_tokenizer(model: Any, tokenizer: Any) -> None:
    builder, counting = ClassifierBuilder(), Counting(tokenizer)
    fish = builder.add("fish", CLASSES, TEMPLATES)
    with inference(model, CPU):
        first = builder.build(model, counting, CPU)[fish].weights
        model.text[2].weight.data[0] += 1
        assert not torch.equal(builder.build(model, counting, CPU)[fish].weights, first)
        model.text[2].weight.data[0] -= 1
        assert len(counting.texts) == len(CLASSES) * len(TEMPLATES)
        builder.build(model, tokenizer, CPU)
        torch.testing.assert_close(builder.build(model, counting, CPU)[fish].weights, first)
    assert len(counting.texts) == 2 * len(CLASSES) * len(TEMPLATES)


def build_one(model: Any, tokenizer: Any, names: list[str], templates: list[str] = TEMPLATES) -> Classifier:
    builder = ClassifierBuilder(batch=4)
    prompts = builder.add("one", names, templates)
    return builder.build(model, tokenizer, CPU)[prompts]


def test_equal_texts_of_all_sets_are_embedded_once(model: Any, tokenizer: Any) -> None:
    builder, counting = ClassifierBuilder(batch=4), Counting(tokenizer)
    sets = {
        name: builder.add(name, classes, templates)
        for name, classes, templates in (
            ("ensemble", CLASSES, TEMPLATES),
            ("contextless", CLASSES, ["{c}"]),
            ("single", CLASSES, ["a photo of a {c}."]),
            ("other data set", CLASSES[:2], [*TEMPLATES, "a {c}"]),
        )
    }
    with inference(model, CPU):
        built = builder.build(model, counting, CPU)
        assert sorted(counting.texts) == sorted(set(counting.texts))
        assert len(counting.texts) == len(CLASSES) * len(TEMPLATES) + 2
        for prompts in sets.values():
            alone = build_one(model, tokenizer, list(prompts.classnames), list(prompts.templates))
            torch.testing.assert_close(built[prompts].weights, alone.weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("change", ["weight", "swap", "precision", "tokenizer", "nothing"])
def test_a_changed_text_tower_is_never_read_stale(model: Any, tokenizer: Any, change: str) -> None:
    builder = ClassifierBuilder()
    fish = builder.add("fish", CLASSES, TEMPLATES)
    with inference(model, CPU):
        before = builder.build(model, tokenizer, CPU)
    with torch.no_grad():
        weight = model.text[2].weight
        if change == "weight":
            weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(1.0))
        elif change == "swap":
            weight[[0, 1]] = weight[[1, 0]]
        elif change == "tokenizer":
            tokenizer = type(tokenizer)()
    with inference(model, CPU, "bf16" if change == "precision" else "fp32"):
        after = builder.build(model, tokenizer, CPU)
        assert (after is before) == (change == "nothing")
        if change != "weight":
            expected = build_one(model, tokenizer, CLASSES).weights
            torch.testing.assert_close(after[fish].weights, expected, atol=1e-6, rtol=0)


def test_the_hash_of_weights_sees_every_bit_and_place_and_no_names() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    found = {weights_hash([plain]), weights_hash([plain.half()]), weights_hash([plain.float()])}
    for change in (
        lambda: plain[0].weight[1].neg_(),
        lambda: plain[0].weight.copy_(plain[0].weight.flip(1)),
        lambda: plain[1].running_mean.add_(1e-7),
        lambda: plain[0].bias.copy_(-torch.zeros(4)),
        lambda: plain[0].bias.copy_(torch.zeros(4)),
    ):
        with torch.no_grad():
            change()
        found.add(weights_hash([plain]))
    assert len(found) == 2 + 1 + 5  # float16 and back rounds
    assert weights_hash([nn.ModuleDict({"other": plain})]) == weights_hash([plain])
    assert all(len(text) == 16 for text in found)


def test_classes_of_equal_prompts_have_equal_logits(model: Any, tokenizer: Any) -> None:
    names = ["crane", "maillot", "tench", "crane", "a much longer name", "maillot", "crane"]
    features = torch.nn.functional.normalize(torch.randn(9, 16), dim=-1)
    with inference(model, CPU):
        classifier = build_one(model, tokenizer, names)
        plain = build_one(model, tokenizer, ["tench"])
    assert classifier.weights.shape == (4, 16)
    cosines = classifier.cosines(features)
    for group in ((0, 3, 6), (1, 5)):
        assert all(torch.equal(cosines[:, group[0]], cosines[:, k]) for k in group)
    torch.testing.assert_close(cosines[:, 2], plain.cosines(features)[:, 0])
