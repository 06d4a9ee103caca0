"""Class names and templates: text in which `{c}` is the placeholder of the class name.

The placeholder is replaced as plain text, never with `str.format`: class names and templates come from data, and may
hold braces of their own.
"""

from collections.abc import Sequence
from pathlib import Path

from clip_lightning.errors import DataError

PLACEHOLDER = "{c}"


def fill(template: str, classname: str) -> str:
    """One prompt: 'a photo of a {c}.' and 'dog' give 'a photo of a dog.'"""
    return template.replace(PLACEHOLDER, classname)


def fill_all(templates: Sequence[str], classnames: Sequence[str]) -> list[str]:
    """Every prompt, class after class, in the order of the templates within a class."""
    return [fill(template, classname) for classname in classnames for template in templates]


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, with or without a byte order mark, stripped; blank lines at its ends are dropped.

    Raises DataError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    return [line.strip() for line in text.strip().split("\n")] if text.strip() else []


def rewritten(template: str) -> str:
    """A template with this project's placeholder: other projects write `{}` for the class name."""
    return template if PLACEHOLDER in template else template.replace("{}", PLACEHOLDER)
