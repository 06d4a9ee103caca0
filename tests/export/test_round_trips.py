"""Ours to another library and back: the same bits, and features equal to 1e-5 in float32 in both libraries."""

from pathlib import Path

import pytest
import torch

from clip_lightning.errors import UserError
from clip_lightning.export import to_open_clip, to_transformers, verify
from clip_lightning.export.__main__ import _exporter
from clip_lightning.training.any_model import open_model
from tests.export.models import KINDS, opened

CASES = [(name, library) for name, (_, libraries) in KINDS.items() for library in libraries]


@pytest.mark.ci
@pytest.mark.parametrize(("name", "library"), CASES)
def test_round_trip_is_bit_equal_and_features_agree(name: str, library: str, tmp_path: Path) -> None:
    ours = opened(KINDS[name][0](tmp_path))
    folder = tmp_path / "out"
    folder.mkdir()
    _exporter(library)(ours, folder)
    found = verify.verify(ours, library, folder)
    assert found.image < 1e-5
    assert found.text is not None
    assert found.text < 1e-5
    print(f"| {name} | {library} | {found.image:.1e} | {found.text:.1e} |")
    back = open_model(folder)
    before, after = ours.model.state_dict(), back.model.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key
    given = verify.inputs(ours)
    with torch.no_grad():
        assert torch.equal(back.model.encode_image(given.pixels), ours.model.encode_image(given.pixels))
        text = back.model.encode_text(given.tokens, given.lengths)
        assert torch.equal(text, ours.model.encode_text(given.tokens, given.lengths))
    assert text.std() > 0.01
    _, lengths, _ = back.tokenizer(verify.TEXTS)
    assert lengths.tolist() == given.lengths.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm + DistilBERT", "timm + Qwen2, last token", "ResNet-50"])
def test_a_model_that_transformers_cannot_hold_is_refused_with_a_format_that_can(name: str, tmp_path: Path) -> None:
    ours = opened(KINDS[name][0](tmp_path))
    with pytest.raises(UserError, match="safetensors can hold it"):
        to_transformers.export(ours, tmp_path)
    if name != "ResNet-50":
        with pytest.raises(UserError, match="safetensors and onnx can hold it"):
            to_open_clip.export(ours, tmp_path)
