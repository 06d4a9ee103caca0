"""Leaf: the objects that import paths of the user's own config name, like `my_package.my_module.MyClass`."""

import re
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from clip_lightning.errors import UserError


def resolve_target(path: str, key: str) -> Any:
    """The function or class with an import path.

    Args:
        path: from the command line or a preset of the user; never from a checkpoint, a hub or data.
        key: the config key that holds the path, for the message.

    Raises:
        UserError: the path cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}={path} cannot be imported ({error}); write package.module.name") from error


def target_problem(path: str | None, key: str) -> str | None:
    """What is wrong with an import path, without importing its module; None where nothing is."""
    if path is None:
        return None
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", path):
        return f"{key}={path} must be an import path like my_package.my_module.build"
    package = path.split(".")[0]
    if find_spec(package) is None:
        return f"{key}={path}: there is no package {package}; install it, or put its folder on PYTHONPATH"
    return None
