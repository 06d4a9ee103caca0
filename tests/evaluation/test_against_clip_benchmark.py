"""Classifier, logits, accuracies and mAP equal CLIP_benchmark's own functions on one model with random weights."""

import json
from typing import Any, NamedTuple

import numpy as np
import open_clip
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification as benchmark
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from clip_lightning.evaluation.classifier import ClassifierBuilder
from clip_lightning.evaluation.inference import inference
from clip_lightning.evaluation.tasks import ZeroShotTask
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
from clip_lightning.training.any_model import open_model

CPU = torch.device("cpu")
CLASSES = ["tench", "great white shark", "hen", "goldfinch", "house finch", "junco", "tench"]
TEMPLATES = ["a bad photo of a {c}.", "a photo of many {c}.", "a sculpture of a {c}.", "{c}", "the toy {c} on a table."]
NUM, SIZE = 200, 32


class Sides(NamedTuple):
    """The same weights in both libraries, and images for both."""

    peer: Any
    peer_tokenizer: Any
    model: Any
    tokenizer: Any
    images: np.ndarray
    normalised: Tensor


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    folder = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 48,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    peer = open_clip.model.CLIP(
        48, open_clip.CLIPVisionCfg(**config["vision_cfg"]), open_clip.CLIPTextCfg(**config["text_cfg"])
    ).eval()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(
        {name: value.contiguous() for name, value in peer.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    opened = open_model(folder)
    images = np.random.default_rng(0).integers(0, 256, (NUM, SIZE, SIZE, 3), dtype=np.uint8)
    mean, std = (
        torch.tensor(of)[:, None, None] for of in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    normalised = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return Sides(peer, open_clip.get_tokenizer("ViT-B-32"), opened.model, opened.tokenizer, images, normalised)


def their_classifier(sides: Sides) -> Tensor:
    return benchmark.zero_shot_classifier(sides.peer, sides.peer_tokenizer, CLASSES, TEMPLATES, "cpu", amp=False)


def their_logits(sides: Sides, targets: Tensor) -> Tensor:
    loader = DataLoader(TensorDataset(sides.normalised, targets), batch_size=64)
    return benchmark.run_classification(sides.peer, their_classifier(sides), loader, "cpu", amp=False)[0]


def test_classifier_and_logits(sides: Sides) -> None:
    builder = ClassifierBuilder(batch=8)
    prompts = builder.add("birds", CLASSES, TEMPLATES)
    with inference(sides.model, CPU):
        classifier = builder.build(sides.model, sides.tokenizer, CPU)[prompts]
        cosines = classifier.cosines(sides.model.encode_image(torch.from_numpy(sides.images).permute(0, 3, 1, 2)))
    assert classifier.vector is not None
    torch.testing.assert_close(classifier.weights[classifier.vector], their_classifier(sides).T, atol=1e-6, rtol=0)
    torch.testing.assert_close(100 * cosines, their_logits(sides, torch.zeros(NUM)), atol=1e-4, rtol=1e-5)


def test_accuracy_and_mean_per_class(sides: Sides) -> None:
    labels = torch.arange(NUM) % 6  # the seventh class has the first one's name, and no images
    names = CLASSES[:6]
    task = ZeroShotTask("noise", names, TEMPLATES, labels.numpy(), lambda k: sides.images[k])
    found = {r.what: r.value for r in ZeroShotEvaluator(task, SIZE).run(sides.model, sides.tokenizer, CPU)}
    logits = their_logits(sides, labels)[:, :6]
    assert found["acc1"] == (logits.argmax(1) == labels).double().mean().item()
    assert found["acc5"] == (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    expected = benchmark.balanced_accuracy_score(labels, logits.argmax(1))
    assert found["mean_per_class"] == pytest.approx(expected, abs=1e-12)


def test_plain_mean_average_precision(sides: Sides) -> None:
    labels = torch.rand(NUM, 6, generator=torch.Generator().manual_seed(1)) < 0.3
    task = ZeroShotTask("noise", CLASSES[:6], TEMPLATES, labels.numpy(), lambda k: sides.images[k], metric="map")
    found = {r.what: r for r in ZeroShotEvaluator(task, SIZE).run(sides.model, sides.tokenizer, CPU)}
    expected = benchmark.average_precision_per_class(their_logits(sides, labels)[:, :6], labels).mean().item()
    assert found["map"].value == pytest.approx(expected, abs=1e-6)
