"""A run holds its tokenizer, its encoder's configuration and all weights: it needs no file of its start again."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from transformers import AutoConfig, AutoModel

from clip_lightning.records import read_records
from tests.support.small_tokenizers import save_hub_folder

pytestmark = pytest.mark.slow

BERT = {"model_type": "bert", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64}
BERT |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}


@pytest.fixture
def originals(tmp_path: Path) -> list[str]:
    """Settings that name a folder with tokenizer, configuration and weights, and a file of weights."""
    folder, weights = tmp_path / "originals" / "bert", tmp_path / "originals" / "vit.pth"
    save_hub_folder(folder, "bert")
    rows = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    AutoModel.from_config(AutoConfig.for_model(**BERT | {"vocab_size": rows})).save_pretrained(folder)
    shape = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}
    torch.save(timm.create_model("vit_tiny_patch16_224", **shape).state_dict(), weights)
    return [
        "model=pair",
        "model/vision=timm",
        "model/text=huggingface",
        "model.embed_dim=16",
        "model.vision.timm=vit_tiny_patch16_224",
        "model.vision.image_size=32",
        "model.vision.options={embed_dim:32,depth:1,num_heads:2}",
        f"model.vision.pretrained={weights}",
        f"model.text.huggingface={folder}",
        "model.text.pretrained=true",
        "model.text.pool=cls",
        "model.text.context_length=16",
        "model.text.tokenizer.kind=hub",
        f"model.text.tokenizer.path={folder}",
        f"model.text.tokenizer.vocab_size={rows}",
        "eval=default",
        "eval.tasks=[shape]",
        "eval.every=0 samples",
    ]


def test_resume_and_evaluation_need_no_original_and_refuse_a_changed_tokenizer(
    runner: Any, originals: list[str], small: list[str], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    child = runner.start("train.py", f"runs={runs}", *small, *originals, "compute.duration=40 steps")
    child.wait_for("sample 64/")
    assert child.kill() == -signal.SIGKILL, child.text()
    shutil.rmtree(tmp_path / "originals")
    assert "resumed at " in runner.train(runs, *originals, "compute.duration=40 steps")
    run = runs / "latest"
    child = runner.start("evaluate.py", f"run={run}")
    assert child.wait() == 0, child.text()

    def top1(name: str) -> float:
        return [record.value for record in read_records(run / name) if record.what == "acc1"][-1]

    assert top1("evaluation.jsonl") == top1("metrics.jsonl")
    assert (run / "tokenizer" / "encoder" / "config.json").is_file()
    file = run / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace('"##', '"#'))
    child = runner.start("evaluate.py", f"run={run}")
    assert (child.wait(), "fresh=true" in child.text()) == (2, True), child.text()
