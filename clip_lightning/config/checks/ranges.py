"""Whether each value of a config is allowed by itself, by the rules beside the fields of the schema."""

from collections.abc import Iterator
from functools import reduce
from typing import Any

from clip_lightning.config import keys
from clip_lightning.config.schema import Config, EvaluateConfig
from clip_lightning.errors import UserError


def problems(config: Config | EvaluateConfig) -> Iterator[tuple[str, str]]:
    """The key and the problem of each value that its rule forbids."""
    schema: type = type(config)
    for key in keys.table(schema).values():
        value = get(config, key.name)
        yield from _problem(key, key.name, value, config)
        for item in keys.items(key):
            for k, part in enumerate(value):
                name = item.name.replace("[k]", f"[{k}]")
                yield from _problem(item, name, getattr(part, item.name.rpartition(".")[2]), config)


def get(config: Any, key: str) -> Any:
    """The value of a dotted key; None where this kind of config has no such part."""
    return reduce(lambda part, name: getattr(part, name, None), key.split("."), config)


def _problem(key: keys.Key, name: str, value: Any, config: Any) -> Iterator[tuple[str, str]]:
    if key.rule is None or value is None or (key.name == "data.kind" and get(config, "data._target_")):
        return
    try:
        if not key.rule.holds(value):
            near = keys.did_you_mean(keys.near(str(value), key.rule.choices))
            yield name, f"{name}={value} must be {key.rule.text}{near}"
    except UserError as error:
        yield name, f"{name}: {error}"
