"""A run from imported weights: scale and bias have one owner each, and a frozen tower keeps its bits."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from clip_lightning import ClipModule, ContrastiveDataModule, load_config
from clip_lightning.config.schema import Config
from clip_lightning.export.to_safetensors import export
from clip_lightning.model.clip import build_clip
from clip_lightning.model.convert import open_clip, transformers
from clip_lightning.tokenizer import build_tokenizer
from clip_lightning.training.any_model import OpenedModel, open_model

STEPS = 20


def config(*words: str) -> Config:
    fixed = ["model=tiny", "data=scenes", "loss=sigmoid", f"compute.duration={STEPS} steps", "compute.global_batch=32"]
    return load_config(*fixed, "compute.warmup=2 steps", "cluster.workers=0", "compute.precision=fp32", *words)


def imported(folder: Path) -> OpenedModel:
    """Files of a model with scale 20 and bias -7."""
    run = config()
    model = build_clip(run.model, run.loss)
    with torch.no_grad():
        model.log_logit_scale.fill_(20.0).log_()
        assert model.logit_bias is not None
        model.logit_bias.fill_(-7.0)
    tokenizer = build_tokenizer(run.model.text, None, ["a red circle"] * 100)
    opened = OpenedModel(model, tokenizer, run.model, run, None, None)
    folder.mkdir()
    export(opened, folder)
    return opened


@pytest.mark.slow
def test_twenty_steps_from_scale_20_and_bias_minus_7(tmp_path: Path) -> None:
    before = imported(tmp_path / "weights")
    settings = config(
        f"model.pretrained={tmp_path / 'weights'}", "model.vision.locked=true", "loss.logit_scale_max=3.1"
    )
    module = ClipModule(settings)
    assert module.model.current_logit_scale().item() == pytest.approx(20, rel=1e-5)
    assert module.model.logit_bias is not None
    assert module.model.logit_bias.item() == -7.0
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, ContrastiveDataModule(settings))
    for name in ("logit_scale", "logit_bias"):
        now = getattr(module.model, f"current_{name}")().item()
        assert float(trainer.callback_metrics[f"train/{name}"]) == pytest.approx(now, rel=1e-5)
    assert module.model.current_logit_scale().item() <= float(torch.tensor(3.1).exp()) * (1 + 1e-6)
    assert module.model.current_logit_scale().item() != pytest.approx(20, rel=1e-5)
    assert module.model.logit_bias.item() != -7.0
    trained = module.model.state_dict()
    assert [name for name in trained if "logit" in name] == ["log_logit_scale", "logit_bias"]
    for name, value in before.model.vision.backbone.state_dict().items():
        assert torch.equal(trained[f"vision.backbone.{name}"], value), name
    theirs = transformers.export({k: v for k, v in trained.items() if not k.startswith("vision.b")}, "siglip")
    assert sum("logit" in name for name in theirs) == 2
    back = open_clip.scalars_to_ours({name: theirs[name] for name in ("logit_scale", "logit_bias")})
    assert all(torch.equal(value, trained[name]) for name, value in back.items())


@pytest.mark.slow
def test_an_export_opens_with_its_tokenizer_and_scale(tmp_path: Path) -> None:
    imported(tmp_path / "weights")
    run = config()
    from clip_lightning.tokenizer import files

    files.save(run.model.text, tmp_path / "weights" / "tokenizer", ["a red circle", "a green star"] * 50)
    opened = open_model(tmp_path / "weights")
    assert opened.model.current_logit_scale().item() == pytest.approx(20, rel=1e-5)
    tokens, _, _ = opened.tokenizer(["a green star"])
    assert opened.tokenizer.end_id in tokens
