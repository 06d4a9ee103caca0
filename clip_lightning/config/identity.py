"""What makes two runs the same science: the part of a config that decides what is learned, its hash, the run's name.

Hardware, evaluation, logging and paths never enter; a path does only where nothing else names the data.
"""

import hashlib
import json
import os
import re
from dataclasses import fields, is_dataclass
from typing import Any

from clip_lightning.config.schema import Config
from clip_lightning.config.schema.field import is_hashed
from clip_lightning.formatting import setting


def science(config: Config) -> dict[str, Any]:
    """The fields that decide what is learned, as nested plain dictionaries."""
    found: dict[str, Any] = {group: part for group, part in _plain(config).items() if part}
    data = config.data
    if data.num_samples is None and data.kind != "scenes" and data.path is not None:
        found["data"]["path"] = _place(data.path)
    if data.validation.path is not None:
        # Then nothing is held out of the training data.
        found["data"]["validation"]["separate"] = True
    unnamed = {name: part["path"] for name, part in data.parts.items() if part["num_samples"] is None and part["path"]}
    if unnamed:
        found["data"]["paths"] = {name: _place(path) for name, path in unnamed.items()}
    return found


def science_hash(config: Config) -> str:
    """Eight hexadecimal digits of the science; neither the order of keys nor 1 against 1.0 changes them."""
    text = json.dumps(science(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def model_name(config: Config) -> str:
    """The model's name; a pair is named by its two towers."""
    model = config.model
    return f"{model.vision.name}_{model.text.name}" if model.name == "pair" else model.name


def run_name(config: Config) -> str:
    """The name of the run's directory: model-data-compute-hash."""
    return f"{model_name(config)}-{config.data.name}-{config.compute.name}-{science_hash(config)}"


def redacted(text: str) -> str:
    """A text with the credentials of URLs in it left out: `s3://key:secret@bucket?token=x` is `s3://***@bucket?***`."""
    text = re.sub(r"(\w+://)[^/@\s\"']+@", r"\1***@", text)
    return re.sub(r"(\w+://[^?\s\"']+\?)[^\s\"']+", r"\1***", text)


def diff(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """How the science `b` differs from `a`: one readable line for each key, "key: before -> after"."""
    before, after = flatten(a), flatten(b)
    keys = [*before, *(key for key in after if key not in before)]
    absent = "(absent)"
    return [
        f"{key}: {setting(before.get(key, absent))} -> {setting(after.get(key, absent))}"
        for key in keys
        if before.get(key, absent) != after.get(key, absent)
    ]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted keys; lists stay whole, empty dictionaries vanish."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _place(path: str) -> str:
    """An absolute path, or a URL without credentials: what names data that has no published number of pairs."""
    return redacted(path) if "://" in path else os.path.realpath(path)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {
            field.name: _plain(item) for field in fields(value) if is_hashed(field, item := getattr(value, field.name))
        }
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
