"""Every option of model/vision and model/text makes a tower that fits its partner, with the size its header says."""

import re

import pytest
import torch

from clip_lightning.config import compose
from clip_lightning.model.clip import build_clip
from clip_lightning.model.named import names

pytestmark = pytest.mark.slow

GENERIC = ("timm", "huggingface")  # name no architecture of their own
OF_NAMED_MODELS = {"clip_512", "clip_640", "clip_768", "clip_1024", *names()}


def options(kind: str) -> list[str]:
    stems = sorted(path.stem for path in (compose.CONF / "model" / kind).glob("*.yaml"))
    return [stem for stem in stems if stem not in (*GENERIC, *OF_NAMED_MODELS) and not stem.startswith("laion_")]


@pytest.mark.parametrize(
    ("kind", "option"), [(kind, option) for kind in ("vision", "text") for option in options(kind)]
)
def test_option_builds_beside_any_other_tower_with_the_size_it_says(kind: str, option: str) -> None:
    config = compose.load("train", ["model=vit_b32", f"model/{kind}={option}", "data=scenes"], check=False)
    with torch.device("meta"):
        tower = getattr(build_clip(config.model, config.loss), kind)
    header = (compose.CONF / "model" / kind / f"{option}.yaml").read_text(encoding="utf-8")
    said = re.search(r"^# size: ([\d,.]+) M parameters with a projection to 512", header, re.MULTILINE)
    assert said is not None
    assert round(sum(parameter.numel() for parameter in tower.parameters()) / 1e6, 2) == float(said[1])


def test_generic_options_take_any_backbone_and_any_encoder() -> None:
    settings = ["model=pair", "data=scenes", "model/vision=timm", "model.vision.timm=resnet26d.bt_in1k"]
    settings += ["model.vision.image_size=64", "model.vision.batch_norm=true", "model/text=huggingface"]
    settings += ["model.text.huggingface=someone/something", "model.text.config.model_type=electra"]
    settings += ["model.text.pool=cls", "model.text.tokenizer.vocab_size=30522"]
    config = compose.load("train", settings, check=False)
    with torch.device("meta"):
        clip = build_clip(config.model, config.loss)
    assert type(clip.text.encoder).__name__ == "ElectraModel"
    assert (config.model.vision.name, clip.vision.projection.out_features) == ("resnet26d.bt_in1k", 512)
