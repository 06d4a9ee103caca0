"""The conditions of --where: `model=vit_b32 and (data=cc12m or data=cc3m) and not imagenet/acc1<0.2`.

    condition = all {"or" all}      all = one {"and" one}      one = ["not"] ("(" condition ")" | NAME OPERATOR VALUE)

A value is a word, or a text in quotes. Nothing is evaluated as code.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from clip_lightning.errors import UserError

Row = Mapping[str, Any]
Test = Callable[[Row], bool]
_TOKEN = re.compile(r"""\s*(?:(>=|<=|!=|=|>|<|~)|([()])|("[^"]*"|'[^']*')|([^\s()=!<>~"']+))""")
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@dataclass(frozen=True)
class Condition:
    """A parsed condition.

    Attributes:
        names: the keys that it reads.
        test: whether a row meets it; a row that lacks a key meets `=null` alone.
    """

    names: tuple[str, ...]
    test: Test


def parse(text: str) -> Condition:
    """The condition that `text` writes. Raises: UserError: it is not one."""
    reader = _Reader(text)
    test = reader.any_of()
    if reader.place < len(reader.tokens):
        raise reader.error(f"{reader.tokens[reader.place][1]} is one too many")
    return Condition(tuple(dict.fromkeys(reader.names)), test)


class _Reader:
    """Reads tokens from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.names = text, 0, list[str]()
        self.tokens: list[tuple[str, str]] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            found = _TOKEN.match(text, position)
            if not found:
                raise self.error(f"{text[position:].strip()[:20]} cannot be read")
            kind = ("operator", "bracket", "quoted", "word")[(found.lastindex or 1) - 1]
            self.tokens.append((kind, found[found.lastindex or 1]))
            position = found.end()

    def error(self, problem: str) -> UserError:
        return UserError(
            f'--where "{self.text}": {problem}; write conditions like "model=vit_b32 and imagenet/acc1>0.3", joined '
            "by and, or, not and brackets"
        )

    def any_of(self) -> Test:
        tests = [self._all_of()]
        while self._takes("word", "or"):
            tests.append(self._all_of())
        return lambda row: any(test(row) for test in tests)

    def _all_of(self) -> Test:
        tests = [self._one()]
        while self._takes("word", "and"):
            tests.append(self._one())
        return lambda row: all(test(row) for test in tests)

    def _one(self) -> Test:
        if self._takes("word", "not"):
            inner = self._one()
            return lambda row: not inner(row)
        if self._takes("bracket", "("):
            inner = self.any_of()
            if not self._takes("bracket", ")"):
                raise self.error("a closing bracket is missing")
            return inner
        name = self._next("word", "a name is missing")
        operator = self._next("operator", f"an operator (= != < <= > >= ~) is missing after {name}")
        kind, value = self._token()
        if kind not in ("word", "quoted"):
            raise self.error(f"a value is missing after {name}{operator}")
        self.place += 1
        self.names.append(name)
        return _comparison(name, operator, value[1:-1] if kind == "quoted" else value)

    def _token(self) -> tuple[str, str]:
        return self.tokens[self.place] if self.place < len(self.tokens) else ("end", "")

    def _takes(self, kind: str, word: str) -> bool:
        is_next = self._token() == (kind, word)
        self.place += is_next
        return is_next

    def _next(self, kind: str, problem: str) -> str:
        found, word = self._token()
        if found != kind:
            raise self.error(problem)
        self.place += 1
        return word


def _comparison(name: str, operator: str, text: str) -> Test:
    """Numbers compare as numbers, everything else as the text that a command line has; ~ matches a pattern with *.

    `null` is the value of a run that lacks the key.
    """
    number = _number(text)

    def test(row: Row) -> bool:
        value = row.get(name)
        if value is None:
            return operator == "=" and text == "null"
        if operator == "~":
            return fnmatchcase(str(value), text)
        is_number = isinstance(value, int | float) and number is not None
        mine, other = (value, number) if is_number else (str(value), text)
        if operator in ("=", "!="):
            return (mine == other) == (operator == "=")
        # A number has no order beside a word.
        return (is_number or isinstance(value, str)) and _ORDERS[operator](mine, other)

    return test


def _number(text: str) -> float | None:
    """The index has true as 1 and false as 0."""
    if text in ("true", "false"):
        return float(text == "true")
    try:
        return float(text)
    except ValueError:
        return None
