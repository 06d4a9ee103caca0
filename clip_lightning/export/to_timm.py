"""The image tower for `timm.create_model("local-dir:DIR")`: the backbone, without the projection."""

from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf

from clip_lightning.errors import UserError
from clip_lightning.model.vision import timm_arguments
from clip_lightning.training.any_model import OpenedModel

_CROP_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}


def export(opened: OpenedModel, folder: Path) -> None:
    """Writes configuration and weights.

    Raises: UserError: the tower is not one that timm alone has.
    """
    vision = opened.config.vision
    if vision.timm is None or vision.timm.split(".")[0] == "small_resnet":
        raise UserError(f"timm alone has no tower {vision.timm or vision._target_}; safetensors and onnx can hold it")
    arguments = timm_arguments(vision)
    architecture = vision.timm.split(".")[0]
    backbone = timm.create_model(architecture, **arguments)
    tower: Any = opened.model.vision
    backbone.load_state_dict(tower.backbone.state_dict())
    backbone.pretrained_cfg |= {
        "architecture": architecture,
        "input_size": (3, vision.image_size, vision.image_size),
        "mean": tuple(vision.mean),
        "std": tuple(vision.std),
        "interpolation": vision.interpolation,
        "crop_pct": 1.0,
        "crop_mode": _CROP_MODES[vision.resize],
        "num_classes": backbone.num_classes,
    }
    save_for_hf(backbone, str(folder), model_args=arguments, safe_serialization=True)
