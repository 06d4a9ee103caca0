"""Tables of names in two layouts, and the tensors that one layout keeps in one piece and the other in several.

A template is a name with placeholders: `{n}` and `{m}` are numbers, `{w}` is a word (`weight`, `running_mean`), and
`{rest}` is anything.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

_PLACEHOLDERS = {"n": r"\d+", "m": r"\d+", "w": r"\w+", "rest": r".+"}


class Names:
    """Pairs of templates, (theirs, ours), read in both directions; the first that fits is taken."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self._pairs = pairs

    def to_ours(self, name: str) -> str:
        """Our name. Raises KeyError where no template fits."""
        return _translate(name, self._pairs)

    def to_theirs(self, name: str) -> str:
        """Their name. Raises KeyError where no template fits."""
        return _translate(name, [(ours, theirs) for theirs, ours in self._pairs])


def split(state: Mapping[str, Tensor], whole: str, parts: Sequence[str], shares: Sequence[int]) -> dict[str, Tensor]:
    """The same tensors, with each that fits the template `whole` cut along its first dimension.

    Args:
        parts: templates of the parts' names, with the placeholders of `whole`.
        shares: how many equal pieces of the whole each part has.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if (match := _pattern(whole).fullmatch(name)) is None:
            found[name] = value
            continue
        piece = len(value) // sum(shares)
        for part, values in zip(parts, value.split([piece * share for share in shares]), strict=True):
            found[part.format(**match.groupdict())] = values
    return found


def join(state: Mapping[str, Tensor], whole: str, parts: Sequence[str]) -> dict[str, Tensor]:
    """The reverse of `split`: tensors that fit the templates `parts` as one under the name `whole`."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if (match := _pattern(parts[0]).fullmatch(name)) is not None:
            names = [part.format(**match.groupdict()) for part in parts]
            found[whole.format(**match.groupdict())] = torch.cat([state[part] for part in names])
        elif not any(_pattern(part).fullmatch(name) for part in parts[1:]):
            found[name] = value
    return found


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `below`."""
    return {prefix + name: value for name, value in state.items()}


def _translate(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for source, target in pairs:
        if match := _pattern(source).fullmatch(name):
            return target.format(**match.groupdict())
    raise KeyError(name)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    for name, expression in _PLACEHOLDERS.items():
        escaped = escaped.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>{expression})")
    return re.compile(escaped)
