"""All 144 model configurations of open_clip 3.3.0: carried over with every name and shape, or refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from open_clip import hf_model
from open_clip.factory import create_model
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
