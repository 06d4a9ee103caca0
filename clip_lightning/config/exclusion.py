"""The list of samples that a run leaves out, `data.exclude`: its format, and its hash, which is part of the science.

One entry a line: a sample id as the data's layout counts them, or `sha256:` and 64 hex digits of an image's encoded
bytes. `# data: FINGERPRINT` says which data the ids count; other lines with `#` are comments. What
`experiments.figures.fig17_overlap` writes (`fig17_overlap_exclude.txt`) is such a list.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from clip_lightning.config.schema import DataConfig
from clip_lightning.errors import UserError

_FINGERPRINT = re.compile(r"#\s*data:\s*([0-9a-f]{16})\s*")
_ENTRY = re.compile(r"(\d{1,18})|sha256:([0-9a-fA-F]{64})")


class Exclusion(NamedTuple):
    """A list as it was read, its entries sorted and each once.

    Attributes:
        ids: sample ids.
        hashes: SHA-256 of images, 64 hex digits.
        fingerprint: of the data that the ids count; empty where the list does not say.
    """

    ids: list[int]
    hashes: list[str]
    fingerprint: str

    @property
    def digest(self) -> str:
        """16 hex digits that change with the entries; neither their order nor comments change them."""
        entries = [self.fingerprint if self.ids else "", *map(str, self.ids), *self.hashes]
        return hashlib.sha256("\n".join(entries).encode()).hexdigest()[:16]


def read(path: str) -> Exclusion:
    """The list in a file. Raises UserError where it cannot be read, or a line is not an entry."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.exclude={path} cannot be read ({getattr(error, 'strerror', None) or error}); name a file with a "
            "sample id or sha256:HASH on each line."
        ) from error
    ids: set[int] = set()
    hashes: set[str] = set()
    fingerprint = ""
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if found := _FINGERPRINT.fullmatch(line):
            fingerprint = found[1]
        elif line and not line.startswith("#"):
            entry = _ENTRY.fullmatch(line)
            if entry is None:
                raise UserError(
                    f"data.exclude={path}: line {number} is {line[:80]!r}, neither a sample id nor sha256: with 64 "
                    "hex digits; correct it or remove it."
                )
            if entry[1]:
                ids.add(int(entry[1]))
            else:
                hashes.add(entry[2].lower())
    return Exclusion(sorted(ids), sorted(hashes), fingerprint)


def digest_of(data: DataConfig) -> str:
    """What `data.excluded` must be: the hash of the list, empty without one.

    Raises: UserError where the list cannot be read, or `data.excluded` was set by hand.
    """
    if data.excluded:
        raise UserError("data.excluded is filled in from data.exclude; set that")
    return read(data.exclude).digest if data.exclude is not None else ""


def text_of(ids: Iterable[int], fingerprint: str, comments: Iterable[str] = ()) -> str:
    """A list of sample ids as the content of a file."""
    lines = [*(f"# {comment}" for comment in comments), f"# data: {fingerprint}", *map(str, sorted(set(ids)))]
    return "\n".join([*lines, ""])
