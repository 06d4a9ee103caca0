"""Weights from a file, whoever wrote it: one reader for every place that takes a path of weights.

A file is read without running code: safetensors, or torch's format with `weights_only`. What training wrappers put
around a model's weights (`state_dict`, `module.`, `_orig_mod.`, `model.`) is removed.
"""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clip_lightning.errors import UserError

# Keys under which training programs keep the weights, the average of weights first, as timm has it.
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
# How torch's files begin, a zip archive and the older format; safetensors begin with the length of their header.
_TORCH_FILES = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
_PREFIXES = ("module.", "model.")
_COMPILED = "_orig_mod."
# Layouts by what one of their names begins with; the first that fits is the layout.
_LAYOUTS = {
    "vision.backbone.": "a model of clip_lightning",
    "visual.": "OpenAI's CLIP or open_clip",
    "vision_model.": "CLIP or SigLIP of transformers",
    "text_model.": "CLIP or SigLIP of transformers",
    "embeddings.": "a text encoder of transformers",
    "encoder.layer": "a text encoder of transformers",
    "patch_embed.": "a vision transformer of timm",
    "stem.": "a ResNet of timm",
    "conv1.": "a ResNet of timm or torchvision",
}
KNOWN = "a tower of timm, a model of OpenAI's CLIP, open_clip or clip_lightning"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, without the containers and prefixes of training programs.

    Raises:
        UserError: the file does not exist, is damaged, holds other objects than tensors, or no weights.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; write the path of a file of weights")
    try:
        with path.open("rb") as file:
            is_torch = file.read(4) in _TORCH_FILES
            file.seek(0)
            # The open file, since torch.load takes a name's suffix for the format.
            content = torch.load(file, map_location="cpu", weights_only=True) if is_torch else load_file(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds Python objects besides tensors, and loading them could run code; save the weights alone, "
            "with torch.save(model.state_dict(), PATH) or as safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged, or is not a file of weights ({reason})") from error
    state = _weights_in(content)
    if not state:
        raise UserError(f"{path} holds no weights; its first keys: {first_keys(content)}")
    return _without_prefixes(state)


def describe(state: Iterable[str]) -> str:
    """The layout of a state dict and its first keys, for a message."""
    names = list(state)
    found = next((layout for start, layout in _LAYOUTS.items() if any(name.startswith(start) for name in names)), None)
    return f"{found or 'an unknown layout'}; its first keys: {first_keys(names)}"


def first_keys(names: Any) -> str:
    """The first three keys, for a message."""
    keys = [str(name) for name in names] if isinstance(names, Iterable) else []
    return ", ".join(keys[:3]) or "none"


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it; all of them where none does."""
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return found or dict(state)


def _weights_in(content: Any) -> dict[str, Tensor]:
    """The mapping of names to tensors in a container that training programs use, or in the file itself."""
    if not isinstance(content, Mapping):
        return {}
    inner = next((found for key in _CONTAINERS if (found := _weights_in(content.get(key)))), {})
    return inner or {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what torch.compile, DDP and Lightning put before all of them."""
    state = {name.replace(_COMPILED, ""): value for name, value in state.items()}
    while prefix := next((start for start in _PREFIXES if all(name.startswith(start) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
