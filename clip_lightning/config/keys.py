"""Every dotted key of a config and what it may hold, read from the schema; and which of them a wrong name was near.

The error messages and the key reference are made from this table, so that neither can fall behind the schema.
"""

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from clip_lightning.config.schema.field import Rule, default_of

# What people write who come from other frameworks.
_SYNONYMS = {
    "lr": "compute.learning_rate",
    "batch_size": "compute.global_batch",
    "epochs": "compute.duration",
    "max_epochs": "compute.duration",
    "steps": "compute.duration",
    "max_steps": "compute.duration",
    "samples": "compute.duration",
    "warmup_steps": "compute.warmup",
    "wd": "optimizer.weight_decay",
    "gpus": "cluster.devices",
    "num_gpus": "cluster.devices",
    "num_nodes": "cluster.nodes",
    "num_workers": "cluster.workers",
    "accum_freq": "cluster.micro_batch",
    "grad_clip": "compute.gradient_clip",
    "wandb": "logger",
    "temperature": "loss.logit_scale_init",
    "dataset": "data",
    "arch": "model",
}


@dataclass(frozen=True)
class Key:
    """One key: `kind` is its type, the rest as in `schema.field.key`; below an `open` key any name is allowed."""

    name: str
    kind: Any
    default: Any
    help: str
    rule: Rule | None
    science: bool

    @property
    def open(self) -> bool:
        """Whether the keys below this one are the user's own."""
        return typing.get_origin(self.kind) is dict


@cache
def table(schema: type) -> dict[str, Key]:
    """All leaf keys of a schema by dotted name, in the schema's order."""
    return {key.name: key for key in _walk(schema, "")}


def sections(schema: type) -> list[str]:
    """The dotted names that hold further keys: groups and their parts."""
    parents = {name.rsplit(".", depth)[0] for name in table(schema) for depth in range(1, name.count(".") + 1)}
    return sorted(parents)


def owner(schema: type, name: str) -> str:
    """The open key that a dotted name is below, or the name itself where it is a key; empty otherwise."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        key = table(schema).get(".".join(parts[:depth]))
        if key is not None and (depth == len(parts) or key.open):
            return key.name
    return ""


def rule(kind: Any) -> str:
    """What a key of this type takes, in words."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(rule(part) for part in arguments)
    if typing.get_origin(kind) is list:
        if is_dataclass(arguments[0]):
            parts = ",".join(f"{field.name}:..." for field in fields(arguments[0]))
            return f"a list like [{{{parts}}}], where what is left out is null"
        inner = {int: "whole numbers", float: "numbers", str: "names"}[arguments[0]]
        return f"a list of {inner} like [a,b]"
    if typing.get_origin(kind) is dict:
        return "keys with values like {a:b}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return words[kind]


def near(name: str, candidates: Iterable[str]) -> list[str]:
    """Up to three candidates that a wrong name may have meant, likeliest first."""
    pool = list(candidates)
    last = name.rsplit(".", 1)[-1]
    found = [key for key in pool if key == _SYNONYMS.get(last) or key.rsplit(".", 1)[-1] == last]
    if found:
        return found[:3]
    found = difflib.get_close_matches(name, pool, n=3, cutoff=0.8)
    tails: dict[str, list[str]] = {}
    for key in pool:
        tails.setdefault(key.rsplit(".", 1)[-1], []).append(key)
    for tail in difflib.get_close_matches(last, tails, n=3, cutoff=0.8):
        found += tails[tail]
    found = found or difflib.get_close_matches(name, pool, n=3, cutoff=0.6)
    return list(dict.fromkeys(found))[:3]


def did_you_mean(names: Sequence[str]) -> str:
    """The end of a sentence about a wrong name."""
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _walk(schema: type, prefix: str, science: bool = True) -> Iterable[Key]:
    hints = typing.get_type_hints(schema)
    for field in fields(schema):
        kind, name, metadata = hints[field.name], prefix + field.name, field.metadata
        decides = science and metadata["science"]
        if is_dataclass(kind):
            assert isinstance(kind, type)
            yield from _walk(kind, name + ".", decides)
        else:
            yield Key(name, kind, default_of(field), metadata["help"], metadata["rule"], decides)


def items(key: Key) -> list[Key]:
    """The keys of each item of a list of parts, named like `compute.phases[k].start`; of other keys none."""
    [inner, *_] = typing.get_args(key.kind) or [None]
    return list(_walk(inner, f"{key.name}[k].", key.science)) if isinstance(inner, type) and is_dataclass(inner) else []
