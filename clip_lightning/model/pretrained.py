"""Weights from a file, whoever wrote it: one reader for every place that takes a path of weights.

A file is read without running code: safetensors, or torch's format with `weights_only`. What training wrappers put
around a model's weights (`state_dict`, `module.`, `_orig_mod.`, `model.`) is removed.
"""

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clip_lightning.config.foreign.archive import is_archive, stored_tensors
from clip_lightning.errors import UserError
from clip_lightning.model.convert.layouts import layout_of

# Keys under which training programs keep the weights, the average of weights first, as timm has it.
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
# How torch's files begin, a zip archive and the older format; safetensors begin with the length of their header.
_TORCH_FILES = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
_PREFIXES = ("module.", "model.")
_COMPILED = "_orig_mod."
KNOWN = "a tower of timm, a model of OpenAI's CLIP, open_clip, transformers or clip_lightning"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, without the containers and prefixes of training programs.

    A TorchScript archive is read as a zip file; its code is not run.

    Raises:
        UserError: the file does not exist, is damaged, holds other objects than tensors, or no weights.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; write the path of a file of weights")
    if is_archive(path):
        return _archived(path)
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
    return f"{layout_of(names) or 'an unknown layout'}; its first keys: {first_keys(names)}"


def first_keys(names: Any) -> str:
    """The first three keys, for a message."""
    keys = [str(name) for name in names] if isinstance(names, Iterable) else []
    return ", ".join(keys[:3]) or "none"


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it; all of them where none does."""
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return found or dict(state)


def _archived(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive. Raises UserError where it is damaged."""
    found: dict[str, Tensor] = {}
    with zipfile.ZipFile(path) as archive:
        for name, stored in stored_tensors(path).items():
            dtype: torch.dtype = getattr(torch, stored.dtype)
            try:
                content = bytearray(archive.read(stored.member))
                if len(content) != stored.num_elements * dtype.itemsize:
                    raise ValueError(f"{stored.member} has {len(content)} bytes")
                storage = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
                found[name] = storage.as_strided(stored.shape, stored.stride, stored.offset).clone()
            except (KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
                raise UserError(f"{path} is damaged: its tensor {name} cannot be read ({error})") from error
    return _without_prefixes(found)


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
