"""All 144 model configurations of open_clip 3.3.0: carried over with every name and shape, or refused."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from open_clip import hf_model
from open_clip.factory import create_model
from open_clip.model import CLIP, CustomTextCLIP
from transformers import AutoConfig

from clip_lightning.config.foreign import open_clip as reader
from clip_lightning.config.foreign.hub_towers import HUB_TOWERS
from clip_lightning.config.foreign.sources import open_clip_configs
from clip_lightning.config.schema import LossConfig
from clip_lightning.errors import UserError
from clip_lightning.model.clip import build_clip
from clip_lightning.model.convert.layouts import to_ours
from clip_lightning.model.imported import check_names, fitted

CONFIGS = open_clip_configs()


@contextmanager
def inline_towers() -> Iterator[None]:
    """Inside, open_clip builds the hub's text encoders from inline configurations."""

    def inline(name: str) -> Any:
        config = dict(HUB_TOWERS[name])
        return AutoConfig.for_model(config.pop("model_type"), **config)

    with mock.patch.object(hf_model, "AutoConfig", SimpleNamespace(from_pretrained=inline)):
        yield


def outcome(name: str) -> str:
    """carried over, or the reason why not."""
    config = CONFIGS[name]
    try:
        model = reader.read(config)
    except UserError as error:
        return str(error)
    loss = LossConfig(name=model.loss, logit_bias_init=-10.0 if model.loss == "sigmoid" else None)
    with torch.device("meta"), inline_towers():
        ours = build_clip(model, loss)
        theirs = create_model(name, load_weights=False, pretrained_text=False, device="meta")
    state, _ = fitted(to_ours(theirs.state_dict()), ours, model.vision.image_size)
    check_names(state, ours, [], name)
    return "carried over"


@pytest.mark.ci
def test_every_contrastive_configuration_is_carried_over() -> None:
    found = {name: outcome(name) for name in CONFIGS}
    assert len(found) == 144
    refused = {name: reason for name, reason in found.items() if reason != "carried over"}
    assert set(refused) == {"coca_ViT-B-32", "coca_ViT-L-14", "coca_base", "coca_roberta-ViT-B-32"}
    assert all("caption decoder" in reason for reason in refused.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-16-SigLIP2", "roberta-ViT-B-32", "ViT-L-14-CLIPA"])
def test_a_configuration_of_each_kind_is_carried_over(name: str) -> None:
    assert outcome(name) == "carried over"


CUT = {
    "ViT-B-32-quickgelu": {"vision_cfg": {"layers": 2}, "text_cfg": {"layers": 2}},
    "ViT-H-14-CLIPA": {"vision_cfg": {"layers": 2, "width": 160}, "text_cfg": {"layers": 2, "width": 128, "heads": 2}},
    "ViT-bigG-14": {
        "vision_cfg": {"layers": 2, "width": 208},
        "text_cfg": {"layers": 2, "width": 128, "heads": 2, "vocab_size": 300},
    },
    "ViT-B-16-SigLIP": {"text_cfg": {"layers": 2, "vocab_size": 300}},
    "MobileCLIP-S1": {"text_cfg": {"layers": 2, "vocab_size": 300}},
    "convnext_tiny": {"text_cfg": {"layers": 2, "vocab_size": 300}},
    "vit_medium_patch16_gap_256": {"text_cfg": {"layers": 2, "vocab_size": 300}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CUT)
def test_values_of_a_cut_configuration_are_open_clips(name: str) -> None:
    config = copy.deepcopy(CONFIGS[name])
    for part, changes in CUT[name].items():
        config[part] |= changes
    model = reader.read(config)
    loss = LossConfig(name=model.loss, logit_bias_init=-10.0 if model.loss == "sigmoid" else None)
    torch.manual_seed(1)
    kwargs = {key: value for key, value in config.items() if key != "custom_text"}
    theirs = (CustomTextCLIP if config.get("custom_text") else CLIP)(**kwargs).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.numel() > 1 and parameter.std() == 0:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = build_clip(model, loss).eval()
    state, _ = fitted(to_ours(theirs.state_dict()), ours, model.vision.image_size)
    check_names(state, ours, [], name)
    ours.load_state_dict(state)
    size, context = model.vision.image_size, model.text.context_length
    images, tokens = torch.randn(2, 3, size, size), torch.randint(3, 290, (2, context))
    tokens[:, -1] = model.text.config["vocab_size"] - 1
    with torch.no_grad():
        image = ours.encode_image(images) - theirs.encode_image(images, normalize=True)
        text = ours.encode_text(tokens, torch.full((2,), context)) - theirs.encode_text(tokens, normalize=True)
    print(f"| {name} | {float(image.abs().max()):.1e} | {float(text.abs().max()):.1e} |")
    assert image.abs().max() < 1e-5
    assert text.abs().max() < 1e-5
