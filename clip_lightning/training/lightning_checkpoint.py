"""Checkpoints that Lightning's own ModelCheckpoint writes: a ClipModule can be made from one.

They hold the config as plain text beside weights and optimizer. Such a file may come from anywhere: nothing in it is
unpickled, and an import path in its config is used only where the caller allows it.
"""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch

from clip_lightning.config import compose
from clip_lightning.config.frozen import parse
from clip_lightning.config.schema import Config
from clip_lightning.errors import CheckpointError
from clip_lightning.training.saved_model import refuse_targets

_KEY = "hyper_parameters"  # Lightning's name for what a module was made from
_Module = TypeVar("_Module", bound=Any)


def add_config(checkpoint: dict[str, Any], config: Config) -> None:
    """Adds the config, as YAML, to a checkpoint of Lightning's; this project's own have it beside them."""
    if "state_dict" in checkpoint:
        checkpoint[_KEY] = {"config": compose.dump(config)}


def load(
    kind: type[_Module], path: str | Path, map_location: Any = "cpu", *, allow_target: Sequence[str] = ()
) -> _Module:
    """A module with the config, weights and place in the run of a checkpoint.

    Args:
        kind: ClipModule, or a subclass with the same constructor.
        allow_target: import paths in the checkpoint's config that may be imported and called.

    Raises:
        CheckpointError: the file is not such a checkpoint.
        UserError: its config names an import path that is not allowed.
    """
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        text, weights = checkpoint[_KEY]["config"], checkpoint["state_dict"]
    except (OSError, RuntimeError, UnpicklingError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of a ClipModule that Lightning has written") from error
    config = parse(text, source=str(path))
    refuse_targets(config, allow_target)
    config.model.vision.pretrained = config.model.text.pretrained = False  # the checkpoint holds all weights
    config.model.pretrained = None
    module = kind(config)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds the weights of another model than its config describes") from error
    module.on_load_checkpoint(checkpoint)
    return module
