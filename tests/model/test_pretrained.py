"""Files of weights: wrappers of training programs are removed; other files are refused with their layout and keys."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clip_lightning.config.schema import LossConfig, ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from clip_lightning.errors import UserError
from clip_lightning.model.clip import CLIP, build_clip
from clip_lightning.model.pretrained import read_state_dict
from clip_lightning.model.vision import VisionTower

PLAIN = {"a.weight": torch.arange(3.0), "b.bias": torch.ones(2)}
VISION = {"timm": "vit_tiny_patch16_224", "image_size": 32, "options": {"embed_dim": 32, "depth": 1, "num_heads": 2}}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in PLAIN.items()}


WRAPPED: dict[str, Any] = {
    "plain": PLAIN,
    "DDP": prefixed("module."),
    "compiled": {"module._orig_mod.a.weight": PLAIN["a.weight"], "module.b._orig_mod.bias": PLAIN["b.bias"]},
    "Lightning": {"state_dict": prefixed("model."), "epoch": 3, "optimizer_states": [{}]},
    "open_clip": {"state_dict": prefixed("module."), "name": "run", "epoch": 3},
    "timm": {"model": PLAIN, "arch": "vit", "state_dict_ema": None},
}


@pytest.mark.parametrize("content", WRAPPED.values(), ids=WRAPPED.keys())
def test_wrappers_are_removed(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    found = read_state_dict(tmp_path / "weights.pt")
    assert {name: value.tolist() for name, value in found.items()} == {k: v.tolist() for k, v in PLAIN.items()}


def test_the_format_is_read_from_the_content(tmp_path: Path) -> None:
    save_file(prefixed("model."), tmp_path / "weights.bin")
    torch.save(PLAIN, tmp_path / "weights.safetensors")
    torch.save(PLAIN, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("weights.bin", "weights.safetensors", "old.pth"):
        assert read_state_dict(tmp_path / name).keys() == PLAIN.keys()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"PK\x03\x04 cut", "is damaged"),
        (b"hello", "is damaged"),
        (b"", "is damaged"),
        ({"epoch": 3, "loss": 0.5, "seed": 1, "rank": 0}, "its first keys: epoch, loss, seed"),
        ({"state_dict": torch.nn.Linear(1, 1)}, "Python objects besides tensors"),
    ],
)
def test_other_files_are_refused_in_one_sentence(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    (sentence,) = caught.value.problems
    assert words in sentence
    assert "\n" not in sentence
    assert "weights_only" not in sentence


@pytest.fixture(scope="module")
def clip() -> CLIP:
    encoder = {"model_type": "clip_text_model", "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64}
    encoder |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    text = TextConfig(name="own", config=encoder, context_length=16, tokenizer=TokenizerConfig(vocab_size=60))
    model = ModelConfig(name="own", embed_dim=16, vision=VisionConfig(name="own", **VISION), text=text)
    return build_clip(model, LossConfig(name="softmax"))


def test_a_tower_loads_the_weights_of_a_run(clip: CLIP, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({f"model.{name}": value for name, value in clip.state_dict().items()}, path)
    tower = VisionTower(VisionConfig(name="own", pretrained=str(path), **VISION), 16)
    for name, value in clip.vision.backbone.state_dict().items():
        assert torch.equal(tower.backbone.state_dict()[name], value), name


def test_another_architecture_is_named_by_its_layout_and_keys(clip: CLIP, tmp_path: Path) -> None:
    cases = [
        ({name: value for name, value in clip.text.encoder.state_dict().items()}, "text encoder of transformers"),
        ({"vision_model.embeddings.class_embedding": torch.ones(3)}, "CLIP or SigLIP of transformers"),
        ({"foo.bar": torch.ones(3)}, "an unknown layout; its first keys: foo.bar"),
    ]
    for content, words in cases:
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(UserError, match="another architecture") as caught:
            VisionTower(VisionConfig(name="own", pretrained=str(tmp_path / "other.pt"), **VISION), 16)
        assert words in caught.value.problems[0]
        assert next(iter(content)) in caught.value.problems[0]
