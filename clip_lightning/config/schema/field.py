"""The fields of the schema: each key's default with its help, the values it may hold, and whether it is science."""

import copy
from collections.abc import Callable
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field
from typing import Any

from clip_lightning.config import duration as durations


@dataclass(frozen=True)
class Rule:
    """What the value of a key must be: `text` completes the sentence "KEY=VALUE must be ...".

    `holds` returns whether a value is right; it may raise a UserError that explains a wrong one better.
    """

    text: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def key(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
    duration: bool = False,
    rule: Rule | None = None,
    science: bool = True,
    hash_default: bool = True,
) -> Any:
    """A key of the config. A value of None is never checked: its meaning is in the help.

    Args:
        default: default value, copied for each config; MISSING where every option of the group has to set it.
        help: meaning, with the unit and what null means.
        choices: all values that the key may have.
        above: exclusive lower bound.
        minimum: inclusive lower bound.
        below: exclusive upper bound.
        maximum: inclusive upper bound.
        duration: whether the text is a duration, as `duration.parse` reads it.
        rule: another rule than these.
        science: whether the key decides what is learned and enters the hash of the run's name; only below a group
            that is science itself.
        hash_default: whether the default value enters the hash. A key that is added later says False: runs that do
            not set it keep their hash.
    """
    if choices:
        rule = Rule(f"one of {', '.join(choices)}", lambda value: value in choices, choices)
    elif duration:
        rule = Rule(f"a duration like {durations.FORMS}", _is_duration)
    else:
        rule = rule or _range(above, minimum, below, maximum)
    metadata = {"help": help, "rule": rule, "science": science, "hash_default": hash_default}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def part(schema: type, *, science: bool = True) -> Any:
    """A section of the config: a dataclass of further keys; see `key` for `science`."""
    return field(default_factory=schema, metadata={"science": science})


def is_hashed(described: Field[Any], value: Any) -> bool:
    """Whether a field with this value enters the hash of the science."""
    metadata = described.metadata
    return bool(metadata["science"] and (metadata.get("hash_default", True) or value != default_of(described)))


def default_of(described: Field[Any]) -> Any:
    """The default value of a field; MISSING of `dataclasses` where it has none."""
    return described.default_factory() if described.default_factory is not NO_DEFAULT else described.default


def ascending(text: str, maximum: float = float("inf")) -> Rule:
    """The rule of a list [least,most] of numbers above 0."""
    return Rule(text, lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1] <= maximum)


def _range(above: float | None, minimum: float | None, below: float | None, maximum: float | None) -> Rule | None:
    def holds(value: float) -> bool:
        return (
            (above is None or value > above)
            and (minimum is None or value >= minimum)
            and (below is None or value < below)
            and (maximum is None or value <= maximum)
        )

    lower = "" if above is minimum is None else f"above {above:g}" if minimum is None else f"{minimum:g} or more"
    upper = "" if below is maximum is None else f"below {below:g}" if maximum is None else f"at most {maximum:g}"
    text = " and ".join(filter(None, [lower, upper]))
    return Rule(text, holds) if text else None


def _is_duration(text: str) -> bool:
    return bool(durations.parse(text))
