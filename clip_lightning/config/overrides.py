"""The command line's `key=value` words, read and checked one by one, so that all mistakes are reported at once.

Hydra stops at the first mistake, names no near key, and lets `+key=` past its checks. Here each word is held against
the schema and the options on disk before Hydra sees it.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clip_lightning.config import keys

# Settings of other frameworks that are no other name of one key here.
_HABITS = {
    "resume": "resume: there is no such key, since the same command resumes a run; write fresh=true to start it over",
    "checkpoint": "checkpoint: there is no such key of train.py, since the same command resumes a run",
    "epochs": "epochs: there is no such key; write compute.duration='5 epochs'",
    "max_epochs": "max_epochs: there is no such key; write compute.duration='5 epochs'",
    "max_steps": "max_steps: there is no such key; write compute.duration='1000 steps'",
    "steps": "steps: there is no such key; write compute.duration='1000 steps'",
    "gpus": "gpus: there is no such key; write cluster=ddp cluster.devices=8",
    "workers": "workers: there is no such key; write cluster.workers=4",
    "batch_size": "batch_size: there is no such key; write compute.global_batch=256, the pairs of one step",
}
PLACEHOLDERS = ("by_data", "by_model")  # options that stand for another one


class Grammar:
    """What a word may say: the keys of a schema, and the options of the groups in some folders."""

    def __init__(self, schema: type, folders: Sequence[Path]) -> None:
        """Args: schema: dataclass of the config. folders: conf/ and the user's own, in Hydra's search order."""
        self.schema = schema
        self.folders = folders
        self.keys = keys.table(schema)
        self.sections = keys.sections(schema)

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Every group and its options."""
        found: dict[str, set[str]] = {"experiment": set()}
        for folder in self.folders:
            for path in folder.rglob("*.yaml"):
                if path.parent != folder:
                    found.setdefault(path.parent.relative_to(folder).as_posix(), set()).add(path.stem)
        return {group: sorted(found[group]) for group in sorted(found) if not group.startswith("hydra")}

    @cached_property
    def _typed(self) -> DictConfig:
        """Takes values that have the schema's types. Made once, since that takes a tenth of a second."""
        return OmegaConf.structured(self.schema)

    def owner(self, key: str) -> str:
        """As `keys.owner`, for this schema."""
        return keys.owner(self.schema, key)

    def is_open(self, key: str) -> bool:
        """Whether the name is an open key or lies below one: Hydra adds names there only with a plus.

        Recipes are the exception: they are written in presets, and a command line changes those that are there.
        """
        owner = self.owner(key)
        return owner not in ("", "compute.recipes") and self.keys[owner].open

    def key_problems(self, key: str, value: Any, origin: str) -> list[str]:
        """What is wrong with setting a dotted key to a value; `origin` begins the sentences."""
        if isinstance(value, dict) and key in self.sections:
            return [p for name, item in value.items() for p in self.key_problems(f"{key}.{name}", item, origin)]
        if key in self.sections:
            group = key.replace(".", "/")
            return [f"{origin} sets a whole section; write {group}=NAME for one of its options, or {key}.KEY=VALUE"]
        if not (owner := self.owner(key)):
            names = [*self.keys, *self.sections]
            return [
                f"{origin}: there is no key {key}" + keys.did_you_mean([_homed(name) for name in keys.near(key, names)])
            ]
        try:
            for name in reversed(key.removeprefix(owner).split(".")[1:]):
                value = {name: value}
            OmegaConf.update(self._typed, owner, value, merge=True, force_add=True)
        except OmegaConfBaseException:
            rule = keys.rule(self.keys[owner].kind)
            return [
                f"{origin}: must be {rule}" if origin.startswith(key) else f"{origin}: {key}={value} must be {rule}"
            ]
        return []


def check(words: Sequence[str], grammar: Grammar, *, sweep: bool) -> tuple[list[Override], list[str]]:
    """Reads the words; returns those that can be composed, and a sentence for each that cannot."""
    good, problems = [], []
    groups = grammar.groups
    for word in words:
        if hint := _foreign_habit(word, grammar):
            problems.append(hint)
            continue
        try:
            override = _parse(word, grammar)
        except HydraException:
            problems.append(_unreadable(word))
            continue
        found = _problems(override, word, grammar, groups, sweep)
        problems += found
        if not found:
            good.append(override)
    return good, problems


def repeated(words: Sequence[str], grammar: Grammar) -> list[str]:
    """A sentence for each text, like a path, that a command sets to several values: the shell may have expanded it."""
    given: dict[str, list[str]] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key in grammar.keys and _is_text(grammar.keys[key]):
            given.setdefault(key, []).append(value)
    return [
        f"{key} is set {len(values)} times, to {values[0]} and {values[-1]}; write it once, with quotes "
        f"around a pattern, which the shell expands without them: '{key}={_pattern(values)}'"
        for key, values in given.items()
        if len(set(values)) > 1
    ]


def to_hydra(override: Override, grammar: Grammar) -> str:
    """The word in Hydra's grammar: a new name below an open key needs plus signs."""
    word, key = override.input_line or "", override.key_or_group
    return f"++{word}" if grammar.is_open(key) and key not in grammar.groups else word


def _problems(override: Override, word: str, grammar: Grammar, groups: dict[str, list[str]], sweep: bool) -> list[str]:
    key = override.key_or_group
    if override.is_add() or override.is_force_add():
        return [f"{word}: keys cannot be added; write {word.lstrip('+')} without the plus for a key that exists"]
    if override.is_delete():
        return [f"{word}: keys cannot be deleted; write {key}=null to switch one off, or choose another option"]
    if override.package is not None:
        return [f"{word}: a group's place is fixed; write {key}={override.get_value_element_as_str()}"]
    if override.is_hydra_override():
        return [] if sweep else [f"{word} acts on sweeps only; add -m, or leave it out"]
    if override.is_sweep_override():
        if not sweep:
            return [f"{word} names several values; add -m to run them all, or write {key}=[a,b] for a list"]
        texts = override.sweep_string_iterator() if override.is_discrete_sweep() else []
        values = [OverridesParser.create().parse_override(f"{key}={text}").value() for text in texts]
    else:
        values = [override.value()]
    if key in groups:
        return [problem for value in values for problem in _option_problems(key, value, groups[key])]
    if "/" in key:
        return [f"{word}: there is no group {key}" + keys.did_you_mean(keys.near(key, groups))]
    if key not in grammar.sections and not grammar.owner(key):
        near = keys.near(key, [*groups, *grammar.keys])
        return [f"{word}: there is no key {key}" + keys.did_you_mean([_homed(name) for name in near])]
    return [p for value in values if not _interpolates(value) for p in grammar.key_problems(key, value, word)]


def _parse(word: str, grammar: Grammar) -> Override:
    """A word in Hydra's grammar; a text that the grammar cannot read, like a path with braces, is taken as it is.

    Raises: HydraException for other words that cannot be read.
    """
    key, equals, value = word.partition("=")
    takes_list = key in grammar.keys and grammar.keys[key].kind in (list[str], list[str] | None)
    if takes_list and value and value != "null" and not any(sign in value for sign in "[],'\"$"):
        word = f"{key}=['{value}']"
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        if not equals or key not in grammar.keys or not _is_text(grammar.keys[key]) or value[:1] in ("'", '"'):
            raise
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return OverridesParser.create().parse_override(f"{key}='{quoted}'")


def _is_text(key: keys.Key) -> bool:
    return key.kind in (str, str | None) and key.rule is None


def _pattern(values: list[str]) -> str:
    """The braces that a shell expands to these values."""
    head = os.path.commonprefix(values)  # noqa: RUF071 - characters are compared on purpose
    tail = os.path.commonprefix([value[len(head) :][::-1] for value in values])[::-1]  # noqa: RUF071
    middle = [value[len(head) : len(value) - len(tail)] for value in values]
    inner = f"{middle[0]}..{middle[-1]}" if all(part.isdecimal() for part in middle) else ",".join(middle)
    return f"{head}{{{inner}}}{tail}"


def _foreign_habit(word: str, grammar: Grammar) -> str | None:
    """What to write instead of a setting that other frameworks have."""
    key = word.partition("=")[0]
    return None if key in grammar.keys or key in grammar.sections else _HABITS.get(key.lstrip("-"))


def _option_problems(group: str, value: Any, options: list[str]) -> list[str]:
    if isinstance(value, list) and group in ("callbacks", "logger", "eval"):
        return [problem for item in value for problem in _option_problems(group, item, options)]
    if value in options or (value is None and group in ("experiment", "local", "callbacks", "logger")):
        return []
    named = [option for option in options if option not in PLACEHOLDERS]
    near = keys.did_you_mean(keys.near(str(value), named)) or "."
    return [f"{group}={value}: there is no such option{near} Options of {group}: {', '.join(named) or 'none'}"]


def _unreadable(word: str) -> str:
    if word.startswith("-"):
        fix = f"settings have no dashes, write {word.lstrip('-')}" if "=" in word else "--help shows the flags"
        return f"{word}: there is no such flag; {fix}"
    if "=" not in word:
        return f"{word}: {'there is no such directory, and ' if '/' in word else ''}a setting is written key=value"
    key, value = word.split("=", 1)
    return f"{word}: this value cannot be read; put it in quotes, '{key}=\"{value}\"'"


def _homed(name: str) -> str:
    """A key and the folder of the group that owns it."""
    return f"{name} (conf/{name.split('.')[0]})" if "." in name else name


def _interpolates(value: Any) -> bool:
    return isinstance(value, str) and "${" in value
