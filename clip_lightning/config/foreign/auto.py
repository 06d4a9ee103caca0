"""`model=auto`: the model's keys from the files of `model.pretrained`, under those that the user has set."""

from dataclasses import fields, is_dataclass
from typing import Any

from clip_lightning.config.schema import ModelConfig, TextConfig, VisionConfig
from clip_lightning.errors import UserError

NAME = "auto"
# How a run trained its model, or where that began; not its architecture.
_OF_TRAINING = ("pretrained", "allow_missing", "locked", "patch_dropout", "drop_path")


def fill(model: ModelConfig) -> None:
    """Fills a composed `model=auto` in place; other models stay as they are.

    Raises: UserError: `model.pretrained` is missing, or does not say which architecture it is.
    """
    if model.name != NAME or model.vision.timm != NAME:
        return
    if model.pretrained is None:
        raise UserError(
            "model=auto reads the architecture from model.pretrained, which is not set; write model.pretrained=SOURCE, "
            "or choose a model"
        )
    from clip_lightning.config.foreign import sources

    _take(model, sources.architecture(sources.find(model.pretrained)), _blank())


def _blank() -> ModelConfig:
    """What conf/model/auto.yaml composes: a key that differs from it was set by the user."""
    vision = VisionConfig(name=NAME, timm=NAME, image_size=1)
    return ModelConfig(name=NAME, embed_dim=1, vision=vision, text=TextConfig(name=NAME, huggingface=NAME))


def _take(target: Any, found: Any, blank: Any) -> None:
    """Copies each field of `found` that the user leaves as in `blank`."""
    for field in fields(found):
        mine, theirs, default = (getattr(config, field.name) for config in (target, found, blank))
        if is_dataclass(theirs):
            _take(mine, theirs, default)
        elif mine == default and field.name not in _OF_TRAINING:
            setattr(target, field.name, theirs)
    if isinstance(target, VisionConfig) and target.image_size != found.image_size and "_clip" in str(target.timm):
        target.options = target.options | {"img_size": target.image_size}
