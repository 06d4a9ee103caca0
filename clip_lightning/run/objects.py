"""Objects that a config names by `_target_`: callbacks, loggers, and arguments of Lightning's Trainer.

Their import paths come from the command of a start, or from presets that it names; ranks of the same start read what
rank 0 has written of it. A resumed run takes them from its own command, never from an earlier start's files.
"""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from clip_lightning.errors import UserError
from clip_lightning.targets import resolve_target


def build(value: Any, key: str, **defaults: Any) -> Any:
    """Builds what a config value describes: `{_target_: path, argument: value}`, also inside lists and arguments.

    Args:
        key: of the value, for messages.
        defaults: arguments of the outermost object that it takes and the config leaves out.

    Raises:
        UserError: an import path or an argument is not known, or the object refuses its arguments.
    """
    if isinstance(value, list):
        return [build(item, f"{key}[{k}]") for k, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    arguments = {name: build(item, f"{key}.{name}") for name, item in value.items() if name != "_target_"}
    if "_target_" not in value:
        return arguments
    target, parameters = _target(value, key)
    arguments |= {name: item for name, item in defaults.items() if name in parameters and name not in arguments}
    try:
        return target(**arguments)
    except UserError:
        raise
    except Exception as error:  # a class of the user's or Lightning's may raise anything
        first_line = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(f"{key}: {value['_target_']} cannot be made ({first_line})") from error


def check(value: Any, key: str) -> None:
    """Checks import paths and names of arguments without building anything. Raises: UserError, as `build`."""
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for name, item in items:
        check(item, f"{key}[{name}]" if isinstance(value, list) else f"{key}.{name}")
    if isinstance(value, dict) and "_target_" in value:
        _target(value, key)


def _target(value: dict[str, Any], key: str) -> tuple[Any, Mapping[str, inspect.Parameter]]:
    """What the import path names, and its parameters. Raises: UserError for an argument that it does not take."""
    target = resolve_target(value["_target_"], f"{key}._target_")
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # built in: its own call decides
        return target, {}
    takes_any = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in () if takes_any else value.keys() - parameters.keys() - {"_target_"}:
        near = get_close_matches(name, parameters, n=3) or list(parameters)
        raise UserError(f"{key}.{name}: {value['_target_']} has no such argument; it has {', '.join(near)}")
    return target, parameters
