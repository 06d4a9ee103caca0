"""LP-FT on images in class folders, as the presets print it: the projections first, then everything from their run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clip_lightning.export import to_safetensors
from clip_lightning.training.any_model import open_model
from tests.export.models import KINDS, opened

SMALL = [
    "compute.duration=3 steps", "compute.global_batch=8", "compute.warmup=0 steps", "compute.precision=fp32",
    "cluster.workers=0", "logger=none", "eval=none", "data.validation.num_samples=0",
]  # fmt: skip


@pytest.mark.ci
def test_the_projections_learn_first_and_then_everything_from_their_run(runner: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    to_safetensors.export(opened(KINDS["ViT, GELU"][0](tmp_path)), source)
    random = np.random.default_rng(0)
    for k in range(16):
        folder = tmp_path / "images" / ["tabby_cat", "dog"][k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{k}.png")

    def train(experiment: str, weights: Path) -> Path:
        runs = tmp_path / experiment
        settings = [f"experiment={experiment}", f"model.pretrained={weights}", f"data.path={tmp_path / 'images'}"]
        child = runner.start("train.py", f"runs={runs}", *settings, *SMALL)
        assert child.wait() == 0, child.text()
        assert "duplicates" not in child.text().partition("warning")[2]
        return (runs / "latest").resolve()

    first = train("lp_ft", source)
    begin, probed = (open_model(path).model.state_dict() for path in (source, first))
    changed = {name for name, value in probed.items() if not torch.equal(value, begin[name])}
    assert changed == {"log_logit_scale", "text.projection.weight", "vision.projection.weight"}
    tuned = open_model(train("finetune_classes", first)).model.state_dict()
    unchanged = [name for name, value in tuned.items() if torch.equal(value, probed[name])]
    assert len(unchanged) < 0.1 * len(tuned), unchanged
