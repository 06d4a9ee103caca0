"""The command: a run to files that other libraries open, checked, complete or absent, with a model card."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from sklearn.datasets import load_sample_images

from clip_lightning import embed_images, embed_texts, load
from clip_lightning.errors import UserError
from clip_lightning.export import __main__ as command
from clip_lightning.training.any_model import OpenedModel
from tests.export.models import KINDS, opened

WORDS = ["a cat", "two dogs", "a red circle", "the sky", "a blue square", "one tree", "a boat", "snow", "a cup", "rain"]


def run_folder(opened: OpenedModel, folder: Path) -> Path:
    """Files of ours that the command takes for a source."""
    folder.mkdir()
    command._exporter("safetensors")(opened, folder)
    return folder


@pytest.mark.slow
def test_the_command_writes_checks_and_describes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = run_folder(opened(KINDS["ViT, GELU"][0](tmp_path)), tmp_path / "small")
    out = tmp_path / "exports" / "small-clip"
    assert command.main([str(source), "--to", "transformers", "--out", str(out)]) == 0
    assert "tokens 3 of 3 texts equal" in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= {
        f.name for f in out.iterdir()
    }
    card = (out / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "transformers"
    assert "vit_base_patch16_clip_224, 64 pixels" in card
    assert 'AutoModel.from_pretrained("small-clip")' in card
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        command.main([str(source), "--to", "transformers", "--out", str(out)])
    timm_folder = tmp_path / "tower"
    assert command.main([str(source), "--to", "timm", "--out", str(timm_folder)]) == 0
    assert json.loads((timm_folder / "config.json").read_text())["architecture"] == "vit_base_patch16_clip_224"


@pytest.mark.slow
def test_a_failed_check_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = run_folder(opened(KINDS["timm + DistilBERT"][0](tmp_path)), tmp_path / "small")
    with pytest.raises(UserError, match="safetensors can hold it"):
        command.main([str(source), "--to", "transformers", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out-*"))


@pytest.mark.ci
def test_sentence_transformers_and_a_plain_wrapper_rank_as_ours(tmp_path: Path) -> None:
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    source = run_folder(opened(KINDS["ViT, GELU"][0](tmp_path)), tmp_path / "small")
    command.main([str(source), "--to", "sentence-transformers", "--out", str(tmp_path / "st")])
    photographs = load_sample_images().images
    crops = [photographs[k % 2][9 * k : 9 * k + 128, 25 * k : 25 * k + 128] for k in range(20)]
    texts = [f"{word}, {kind}" for word in WORDS for kind in ("close", "far away")]
    ours = load(source)
    expected = embed_images(ours, crops) @ embed_texts(ours, texts).T
    model = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    images = torch.from_numpy(model.encode([Image.fromarray(crop) for crop in crops]))
    found = images @ torch.from_numpy(model.encode(texts)).T
    print(f"largest difference of similarities {float((found - expected).abs().max()):.1e}")
    assert (found.argsort(1) == expected.argsort(1)).all()
    assert (found.argsort(0) == expected.argsort(0)).all()
