"""A tower that cannot be built says in one sentence what is wrong and what to write, already on the `meta` device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from clip_lightning.config.schema import TextConfig, TokenizerConfig, VisionConfig
from clip_lightning.errors import UserError
from clip_lightning.model.text import TextTower
from clip_lightning.model.vision import VisionTower

BERT = {"model_type": "bert", "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64}
BERT |= {"num_hidden_layers": 1, "num_attention_heads": 2}
VIT = {"embed_dim": 32, "depth": 1, "num_heads": 2}


def vision(**changes: Any) -> Callable[[], object]:
    settings: dict[str, Any] = {"timm": "vit_tiny_patch16_224", "image_size": 32, "options": VIT}
    return lambda: VisionTower(VisionConfig(name="own", **{**settings, **changes}), 16)


def text(**changes: Any) -> Callable[[], object]:
    settings: dict[str, Any] = {"config": BERT, "tokenizer": TokenizerConfig(vocab_size=60)}
    return lambda: TextTower(TextConfig(name="own", **{**settings, **changes}), 16)


BAD: dict[str, tuple[Callable[[], object], list[str]]] = {
    "unknown backbone": (
        vision(timm="convnext_bas"),
        ["model.vision.timm=convnext_bas", "did you mean", "convnext_base"],
    ),
    "unknown option of a backbone": (vision(options={"embed_dimension": 3}), ["embed_dimension=3", "cannot be built"]),
    "batch norm not declared": (
        vision(timm="resnet18", options={}),
        ["model.vision.batch_norm=false", "normalises", "write true"],
    ),
    "batch norm declared in vain": (vision(batch_norm=True), ["model.vision.batch_norm=true", "write false"]),
    "no projection, another width": (vision(projection="none"), ["gives 32", "embed_dim=16", "projection=linear"]),
    "no file of weights": (vision(pretrained="nowhere.safetensors"), ["nowhere.safetensors does not exist"]),
    "unknown encoder": (text(config=BERT | {"model_type": "distilbrt"}), ["model_type=distilbrt", "distilbert"]),
    "wrong value of an encoder": (
        text(config=BERT | {"hidden_size": "wide"}),
        ["model.text.config does not fit", "bert"],
    ),
    "heads that do not divide": (text(config=BERT | {"num_attention_heads": 5}), ["cannot be built", "multiple"]),
    "no encoder": (text(config={}), ["model.text names no encoder"]),
    "no hub": (text(config={}, huggingface="nobody/nothing"), ["model.text.huggingface=nobody/nothing", "network"]),
    "no folder of weights": (text(pretrained="nowhere"), ["model.text.pretrained=nowhere", "config.json"]),
    "other vocabulary": (text(tokenizer=TokenizerConfig(vocab_size=61)), ["vocab_size=61", "60 rows"]),
    "long context": (text(context_length=600), ["context_length=600", "512 or less"]),
    "long context behind an offset": (
        text(config=BERT | {"model_type": "roberta", "pad_token_id": 1}, context_length=511),
        ["context_length=511", "510 or less"],
    ),
    "OpenAI's beginning elsewhere": (text(init="openai"), ["model.text.init=openai", "model_type=bert"]),
    "no text projection, another width": (text(projection="none"), ["gives 32", "embed_dim=16"]),
}


@pytest.mark.parametrize("case", BAD)
def test_problem_is_one_sentence(case: str) -> None:
    builder, expected = BAD[case]
    with pytest.raises(UserError) as caught, torch.device("meta"):
        builder()
    (sentence,) = caught.value.problems
    assert "\n" not in sentence
    for words in expected:
        assert words in sentence


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no configuration of an encoder.*config\.json"):
        text(config={}, huggingface=str(tmp_path))()


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_weights_that_hold_code_are_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": _Payload(tmp_path / "ran")}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"model\.vision\.pretrained: .*Python objects besides tensors"):
        vision(pretrained=str(tmp_path / "bad.pth"))()
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    deeper = VisionTower(
        VisionConfig(name="own", timm="vit_tiny_patch16_224", image_size=32, options=VIT | {"depth": 2}), 16
    )
    torch.save(deeper.backbone.state_dict(), tmp_path / "deeper.pth")
    with pytest.raises(UserError, match=r"another architecture.*it has blocks\.1"):
        vision(pretrained=str(tmp_path / "deeper.pth"))()
    torch.save({"blocks.0.norm1.weight": torch.ones(32)}, tmp_path / "part.pth")
    with pytest.raises(UserError, match="it lacks"):
        vision(pretrained=str(tmp_path / "part.pth"))()
    AutoModel.from_config(AutoConfig.for_model(**BERT)).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"are of another architecture: they lack encoder\.layer\.1"):
        text(config=BERT | {"num_hidden_layers": 2}, pretrained=str(tmp_path / "bert"))()
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model\.text\.pretrained=.*cannot be had"):
        text(pretrained=str(tmp_path / "bert"))()
