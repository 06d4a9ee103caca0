"""The cells of a sweep: the grid that an experiment brings, the values of the command line, and every combination.

An experiment's file defines a grid where Hydra does, in `hydra.sweeper.params`; the command line takes precedence.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override

from clip_lightning.config import identity, overrides
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError


class Cell(NamedTuple):
    """One run of a sweep: the settings in which it differs from the others, all its arguments, its checked config."""

    settings: list[str]
    argv: list[str]
    config: Any


def is_listed(words: Sequence[Override]) -> bool:
    """Whether the cells are known before the sweep: values in lists, and Hydra's own sweeper."""
    return all(not word.is_sweep_override() or word.is_discrete_sweep() for word in words) and not any(
        word.key_or_group == "hydra/sweeper" for word in words
    )


def with_grid(words: Sequence[Override], grid: Mapping[str, Any], grammar: overrides.Grammar) -> list[Override]:
    """The words of a command line before those of an experiment's grid that they leave.

    Raises: UserError for what in the grid does not fit the schema.
    """
    given = {word.key_or_group for word in words}
    good, problems = overrides.check([f"{k}={v}" for k, v in grid.items() if k not in given], grammar, sweep=True)
    if problems:
        raise UserError(*(f"hydra.sweeper.params: {problem}" for problem in problems))
    return [*words, *good]


def settings_of(point: Sequence[str], words: Sequence[Override]) -> list[str]:
    """Of a cell's settings those that have several values in the sweep."""
    swept = [word.get_key_element() for word in words if word.is_sweep_override()]
    return [setting for setting in point if setting.partition("=")[0] in swept]


def unswept(experiment: str | None, grid: Mapping[str, Any], words: Sequence[Override]) -> list[str]:
    """A sentence where a command without -m leaves keys of its experiment's grid open."""
    given = {word.key_or_group for word in words}
    if not (left := [key for key in grid if key not in given]):
        return []
    return [f"experiment={experiment} is a grid over {', '.join(left)}; add -m to run it all, or give each one value"]


def problems(cells: Sequence[Cell]) -> list[str]:
    """A sentence for every two cells that are the same run, since their machines' settings alone differ."""
    found, first = [], dict[str, Cell]()
    for cell in cells:
        if not isinstance(cell.config, Config):
            continue
        same = first.setdefault(identity.run_name(cell.config), cell)
        if same is not cell:
            found.append(
                f"{' '.join(cell.settings)} and {' '.join(same.settings)} are one run "
                f"({identity.run_name(cell.config)}); sweep over what changes the science"
            )
    return found
