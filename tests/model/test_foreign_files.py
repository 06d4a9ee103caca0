"""Files from elsewhere: read without running anything, refused in a sentence, or every key accounted for."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from clip_lightning.config import compose
from clip_lightning.config.foreign import archive, sources, towers
from clip_lightning.config.schema import LossConfig, ModelConfig
from clip_lightning.errors import UserError
from clip_lightning.model.clip import build_clip
from clip_lightning.model.pretrained import read_state_dict
from clip_lightning.training.any_model import open_model

PIXELS, CONTEXT, VOCABULARY = 64, 20, 49408
VISION = {"layers": 2, "width": 128, "patch_size": 16, "image_size": PIXELS}
TEXT = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 64, "heads": 1, "layers": 2}


class Runs:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.marker), "w")


def peer(quick_gelu: bool = True) -> nn.Module:
    torch.manual_seed(1)
    return open_clip.model.CLIP(
        48, open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**TEXT), quick_gelu=quick_gelu
    ).eval()


def model_config(**changes: Any) -> ModelConfig:
    vision = towers.clip_vit(
        width=128, layers=2, heads=2, patch=16, pixels=changes.get("pixels", PIXELS), activation="quick_gelu"
    )
    text = towers.text_transformer(
        kind="clip_text_model",
        vocab=VOCABULARY,
        context=changes.get("context", CONTEXT),
        width=64,
        layers=2,
        heads=1,
        intermediate=256,
        activation="quick_gelu",
    )
    return ModelConfig(name="small", embed_dim=48, vision=vision, text=text)


def traced(path: Path) -> nn.Module:
    """A TorchScript archive like OpenAI's: traced methods, half precision, and three integers beside the weights."""
    model = peer()
    for name, value in {"input_resolution": PIXELS, "context_length": CONTEXT, "vocab_size": VOCABULARY}.items():
        delattr(model, name) if hasattr(model, name) else None
        model.register_buffer(name, torch.tensor(value))
    images, tokens = torch.zeros(1, 3, PIXELS, PIXELS), torch.ones(1, CONTEXT, dtype=torch.long)
    torch.jit.save(
        torch.jit.trace_module(model, {"encode_image": images, "encode_text": tokens}, check_trace=False), path
    )
    return model


@pytest.mark.slow
def test_an_openai_archive_is_read_without_running_it(tmp_path: Path) -> None:
    model = traced(tmp_path / "ViT.pt")
    source = sources.find(str(tmp_path / "ViT.pt"))
    assert source.kind == "archive"
    found = read_state_dict(tmp_path / "ViT.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name
    opened = open_model(tmp_path / "ViT.pt")
    assert opened.config.vision.timm == "vit_base_patch16_clip_quickgelu_224"
    torch.manual_seed(2)
    images, tokens = torch.randn(2, 3, PIXELS, PIXELS), torch.randint(1, VOCABULARY - 1, (2, CONTEXT))
    tokens[:, -1] = VOCABULARY - 1
    with torch.no_grad():
        torch.testing.assert_close(
            opened.model.encode_image(images), model.encode_image(images, normalize=True), atol=1e-5, rtol=0
        )
        text = opened.model.encode_text(tokens, torch.full((2,), CONTEXT))
        torch.testing.assert_close(text, model.encode_text(tokens, normalize=True), atol=1e-5, rtol=0)


def malicious_archive(path: Path, marker: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", pickle.dumps({"weight": Runs(marker)}))
        file.writestr("m/constants.pkl", pickle.dumps(()))
        file.writestr("m/code/__torch__.py", f"open({str(marker)!r}, 'w')")


def bad_files(folder: Path, marker: Path) -> dict[str, tuple[Path, str]]:
    """Every kind of bad file, and words of its sentence."""
    torch.save({"state_dict": {"visual.proj": torch.ones(3)}, "hook": Runs(marker)}, folder / "pickle.pt")
    malicious_archive(folder / "script.pt", marker)
    save_file({"visual.proj": torch.ones(100)}, folder / "whole.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:-50])
    renamed = peer().state_dict()
    renamed["visual.projection"] = renamed.pop("visual.proj")
    torch.save(renamed, folder / "renamed.pt")
    deeper = {name: value.clone() for name, value in peer().state_dict().items()}
    deeper |= {
        name.replace(".1.", ".2."): value
        for name, value in deeper.items()
        if "visual.transformer" in name and ".1." in name
    }
    torch.save(deeper, folder / "deeper.pt")
    wider = peer().state_dict() | {"visual.proj": torch.ones(128, 64)}
    torch.save(wider, folder / "wider.pt")
    torch.save({"foo.bar": torch.ones(3), "foo.baz": torch.ones(3)}, folder / "unknown.pt")
    return {
        "a pickle that runs code": (folder / "pickle.pt", "holds Python objects besides tensors"),
        "an archive that runs code": (folder / "script.pt", r"refers to _?io\.open"),
        "a truncated file": (folder / "cut.safetensors", "is damaged"),
        "a renamed weight": (folder / "renamed.pt", "visual.projection|with projection"),
        "a deeper model": (folder / "deeper.pt", "it has vision.backbone.blocks.2"),
        "a wider model": (folder / "wider.pt", r"vision.projection.weight has shape \[64, 128\]"),
        "an unknown layout": (
            folder / "unknown.pt",
            "an unknown layout; layouts known: .* first keys: foo.bar, foo.baz",
        ),
        "no file": (folder / "none.pt", "is neither a file nor a folder"),
    }


@pytest.mark.slow
def test_bad_files_are_refused_in_a_sentence_and_nothing_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    assert pickle.loads(pickle.dumps(Runs(marker))) is not None  # the marker works
    assert marker.exists()
    marker.unlink()
    for kind, (path, words) in bad_files(tmp_path, marker).items():
        config = model_config()
        config.pretrained = str(path)
        with pytest.raises(UserError, match=words) as caught:
            build_clip(config, LossConfig(name="softmax"))
        assert len(caught.value.problems) == 1, kind
        assert "\n" not in caught.value.problems[0], kind
        assert not marker.exists(), f"{kind}: code in the file was run"


@pytest.mark.slow
def test_a_config_that_names_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    config = CLIPConfig().to_dict() | {"auto_map": {"AutoModel": "modeling.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling.py").write_text(f"open({str(marker)!r}, 'w')")
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="code of its own, which is never run"):
        open_model(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    run = compose.load("train", ["model=tiny", "data=scenes"])
    run.model.vision._target_ = "os.system"
    (own / "config.yaml").write_text(compose.dump(run))
    save_file({"x": torch.ones(1)}, own / "model.safetensors")
    with pytest.raises(UserError, match=r"names os\.system, which would be imported"):
        open_model(own)
    assert not marker.exists()


def test_an_archive_of_another_kind_is_refused(tmp_path: Path) -> None:
    for name, words in {
        "compressed": "its tensors are compressed",
        "empty": "no data.pkl",
        "cut": "is damaged",
    }.items():
        path = tmp_path / f"{name}.pt"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if name == "compressed" else zipfile.ZIP_STORED) as file:
            file.writestr("m/constants.pkl", b"")
            if name != "empty":
                file.writestr("m/data.pkl", pickle.dumps({})[:-1] if name == "cut" else pickle.dumps({}) * 100)
        with pytest.raises(UserError, match=words):
            archive.stored_tensors(path)


def saved(model: nn.Module, path: Path, prefix: str = "") -> None:
    torch.save({"state_dict": {prefix + name: value for name, value in model.state_dict().items()}}, path)


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_positions_are_resized_as_open_clips_and_reported(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = peer()
    saved(theirs, tmp_path / "weights.pt", prefix)
    config = model_config(pixels=96, context=12)
    config.pretrained = str(tmp_path / "weights.pt")
    ours = build_clip(config, LossConfig(name="softmax"))
    out = capsys.readouterr().out
    assert "positions of the image tower resized from 16 to 36 patches (96 pixels)" in out
    assert "positions of the text tower resized from 20 to 12 tokens" in out
    larger = open_clip.model.CLIP(
        48,
        open_clip.CLIPVisionCfg(**VISION | {"image_size": 96}),
        open_clip.CLIPTextCfg(**TEXT | {"context_length": 12}),
    )
    expected: dict[str, Tensor] = dict(theirs.state_dict())
    open_clip.model.resize_pos_embed(expected, larger)
    open_clip.model.resize_text_pos_embed(expected, larger)
    torch.testing.assert_close(
        ours.vision.backbone.pos_embed[0], expected["visual.positional_embedding"], atol=1e-6, rtol=0
    )
    table = ours.text.encoder.embeddings.position_embedding.weight
    torch.testing.assert_close(table.data, expected["positional_embedding"], atol=1e-6, rtol=0)


def test_missing_keys_need_allow_missing(tmp_path: Path) -> None:
    state = {name: value for name, value in peer().state_dict().items() if not name.startswith("ln_final")}
    torch.save(state, tmp_path / "weights.pt")
    config = model_config()
    config.pretrained = str(tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"it lacks text\.encoder\.final_layer_norm"):
        build_clip(config, LossConfig(name="softmax"))
    config.allow_missing = ["text.encoder.final_layer_norm."]
    build_clip(config, LossConfig(name="softmax"))


def test_scale_and_bias_come_with_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = peer()
    state = theirs.state_dict() | {"logit_scale": torch.tensor(6.0), "logit_bias": torch.tensor(-7.0)}
    torch.save(state, tmp_path / "with.pt")
    config = model_config()
    config.pretrained = str(tmp_path / "with.pt")
    softmax = build_clip(config, LossConfig(name="softmax"))
    out = capsys.readouterr().out
    assert softmax.logit_bias is None
    assert "the logit bias -7 of the weights is dropped" in out
    assert "logit scale 403.4 is clamped to 100" in out
    assert softmax.current_logit_scale().item() == pytest.approx(100)
    sigmoid = build_clip(config, LossConfig(name="sigmoid", logit_bias_init=-10.0, logit_scale_max=None))
    assert sigmoid.logit_bias is not None
    assert (sigmoid.logit_bias.item(), sigmoid.log_logit_scale.item()) == (-7.0, 6.0)
    saved(theirs, tmp_path / "without.pt")
    config.pretrained = str(tmp_path / "without.pt")
    started = build_clip(config, LossConfig(name="sigmoid", logit_bias_init=-10.0))
    assert started.logit_bias is not None
    assert started.logit_bias.item() == -10.0
    assert "has no logit bias; it begins at loss.logit_bias_init=-10" in capsys.readouterr().out


def test_a_bare_state_dict_does_not_say_its_activation(tmp_path: Path) -> None:
    saved(peer(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="does not say whether it was trained with QuickGELU"):
        open_model(tmp_path / "weights.pt")


@pytest.mark.slow
def test_auto_reads_the_architecture_and_keeps_what_is_set(tmp_path: Path) -> None:
    text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    text |= {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": VOCABULARY - 1,
        "bos_token_id": 1,
    }
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": PIXELS, "patch_size": 16}
    theirs = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48))
    theirs.save_pretrained(tmp_path)
    preprocess = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5] * 3,
        "resample": 2,
        "size": {"height": 64, "width": 64},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocess))
    words = ["model=auto", f"model.pretrained={tmp_path}", "data=scenes", "model.vision.image_size=96"]
    config = compose.load("train", words, check=False)
    assert config.model.vision.image_size == 96
    assert (config.model.vision.resize, config.model.vision.interpolation) == ("squash", "bilinear")
    assert config.model.vision.mean == [0.1, 0.2, 0.3]
    assert config.model.text.config["hidden_act"] == "quick_gelu"
    ours = build_clip(config.model, config.loss)
    assert torch.equal(ours.text.projection.weight, theirs.text_projection.weight)
    with pytest.raises(UserError, match=r"which is not set; write model\.pretrained=SOURCE"):
        compose.load("train", ["model=auto", "data=scenes"])


def test_short_names_are_open_clips_registry() -> None:
    names = sources.registry_names()
    assert "openai:ViT-B-32" in names
    assert "open_clip:ViT-B-32/laion2b_s34b_b79k" in names
    with pytest.raises(UserError, match="there is no model ViT-B-33; did you mean"):
        sources.find("openai:ViT-B/33")
    with pytest.raises(UserError, match="ViT-B-32 has no weights laion3b; it has openai"):
        sources.find("open_clip:ViT-B-32/laion3b")
