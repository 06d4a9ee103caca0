"""The samples of a tar: which members belong together, what keeps a pair from being trained on, and where each is.

A key is a member's name up to the first dot after the last slash, as webdataset has it; members of one key may be
anywhere in the shard. Whatever is left out is listed by cause, with what was found instead.
"""

import gc
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clip_lightning.data.images.headers import (
    HEAD_BYTES,
    OTHER_SUFFIXES,
    READABLE_SUFFIXES,
    jpeg_size,
    open_with_pillow,
)
from clip_lightning.data.layouts.layout import BadSample, Problem
from clip_lightning.data.layouts.tar_headers import ChunkedFile, DamagedTarError, ReadableFile, members

# One sample: the places of its image and caption, the image's size, the caption's length in characters, and which of
# the caption keys it was found under, as a member of its own or inside the JSON.
RECORD = np.dtype(
    [
        ("image_offset", "<u8"),
        ("caption_offset", "<u8"),
        ("image_size", "<u4"),
        ("caption_size", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("caption_length", "<u4"),
        ("caption_key", "u1"),
        ("caption_in_json", "u1"),
        ("unused", "<u2"),
    ]
)
_QUICK_HEAD = 1 << 12  # bytes of a JPEG that hold its header when it has no profile or thumbnail
_IMAGE, _JSON = -1, -2  # roles of an extension; other roles are numbers of caption keys
_LARGEST = 1 << 32  # bytes of a member that a record can hold
_MOST_GROUPS = 8  # kinds of unknown keys that are listed apart
_SHOWN = 4  # extensions or JSON keys in a hint
_BOM = b"\xef\xbb\xbf"


class ShardIndex(NamedTuple):
    """The samples of one tar.

    Attributes:
        records: RECORD [samples], in the order of the images.
        problems: everything left out; their `shard` is empty.
        digest: of all headers and captions.
    """

    records: npt.NDArray[np.void]
    problems: list[Problem]
    digest: str


class _Sample:
    """What was found under one key.

    Attributes:
        image: offset, size, width and height; or why it cannot be used.
        json: offset and size.
        captions: by number of the caption key: offset, size and text; or why it cannot be used.
    """

    __slots__ = ("captions", "image", "json")

    def __init__(self) -> None:
        self.image: tuple[int, int, int, int] | BadSample | None = None
        self.json: tuple[int, int] | None = None
        self.captions: dict[int, tuple[int, int, str] | BadSample] = {}


def index_tar(path: Path | ReadableFile, image_keys: Sequence[str], caption_keys: Sequence[str]) -> ShardIndex:
    """Walks a tar.

    Args:
        path: the tar, or a file of it that is open; it is closed.
        image_keys: extensions of images, the first found is taken.
        caption_keys: extensions of caption members or keys of the `.json` member, the first that is not empty is taken.
    Raises: OSError where the file cannot be read.
    """
    file = ChunkedFile(path) if isinstance(path, Path) else path
    # A walk creates many small objects and no cycles; searching for cycles would take a fifth of its time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _Walk(file, image_keys, caption_keys).index()
    finally:
        file.close()
        if was_enabled:
            gc.enable()


class _Walk:
    def __init__(self, file: ReadableFile, image_keys: Sequence[str], caption_keys: Sequence[str]) -> None:
        self.file, self.caption_keys = file, list(caption_keys)
        self.roles = {"json": _JSON} | dict.fromkeys(image_keys, _IMAGE)
        self.roles |= {key: number for number, key in enumerate(caption_keys)}
        self.samples: dict[str, _Sample] = {}
        self.unknown: dict[str, list[str]] = {}  # extensions without a role, by key
        self.problems: list[Problem] = []
        self.digest = hashlib.sha256()

    def index(self) -> ShardIndex:
        rows, hinted = [], set[str]()
        damage: DamagedTarError | None = None
        try:
            for name, offset, size in members(self.file, self.digest.update, self._refuse):
                self._sort(name, offset, size)
        except DamagedTarError as error:
            damage = error
        for key, sample in self.samples.items():
            try:
                rows.append(self._record(sample))
            except BadSample as bad:
                hint = "" if bad.cause in hinted else self._hint(bad.cause, key, sample)
                hinted.update([bad.cause] if hint else [])
                self.problems.append(Problem("", key or ".", bad.cause, hint=hint))
        self.problems += self._unknown_keys()
        if damage is not None:
            # What follows the damage is taken to be as dense as what came before it.
            lost = len(rows) * (self.file.size - damage.offset) // max(damage.offset, 1)
            self.problems.append(Problem("", "", damage.cause, max(1, lost)))
        records = np.array(rows, RECORD)
        records = records[np.argsort(records["image_offset"], kind="stable")]
        return ShardIndex(records, self.problems, self.digest.hexdigest()[:16])

    def _refuse(self, name: str, cause: str) -> None:
        self.problems.append(Problem("", name, cause))

    def _sort(self, name: str, offset: int, size: int) -> None:
        """Assigns a member to its key; a second one of the same kind is a problem, and the first one is kept."""
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        key = folder + slash + stem
        if (role := self.roles.get(extension)) is None and (role := self.roles.get(extension.lower())) is None:
            self.unknown.setdefault(key, []).append(extension)
            return
        if (sample := self.samples.get(key)) is None:
            sample = self.samples[key] = _Sample()
        if role == _IMAGE and sample.image is None:
            sample.image = self._image(offset, size)
        elif role == _JSON and sample.json is None:
            sample.json = offset, size
        elif role >= 0 and role not in sample.captions:
            sample.captions[role] = self._caption(offset, size)
        else:
            self.problems.append(Problem("", name, "duplicate key"))

    def _unknown_keys(self) -> list[Problem]:
        """One problem for each kind of keys of which no member is known; a kind is the set of their last suffixes."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for key in self.unknown.keys() - self.samples.keys():
            is_hidden = key.rpartition("/")[2] == ""
            kind = () if is_hidden else tuple(sorted({one.rpartition(".")[2].lower() for one in self.unknown[key]}))
            groups.setdefault(kind, []).append(key)
        problems = []
        usual = {*self.roles, *READABLE_SUFFIXES, *OTHER_SUFFIXES}
        for kind, keys in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))[:_MOST_GROUPS]:
            # A lone member of another kind (a README, a checksum) was hardly ever a sample.
            num = len(keys) if kind and (len(kind) > 1 or kind[0] in usual) else 0
            first = min(keys)
            who = f"{len(keys):,} keys have" if len(keys) > 1 else "1 key has"
            hint = f"{who} only {_listed(self.unknown[first])}; {_advice(kind)}"
            if kind and not num and self.samples:
                hint = ""
            cause = "unknown extension" if kind else "hidden file"
            name = first if num else f"{first}.{self.unknown[first][0]}"
            problems.append(Problem("", name, cause, num, hint if kind else ""))
        return problems

    def _hint(self, cause: str, key: str, sample: _Sample) -> str:
        """What was found under a key instead of its image or caption, and the setting that would read it."""
        extensions = self.unknown.get(key, [])
        if cause == "missing image" and extensions:
            kind = tuple(one.rpartition(".")[2].lower() for one in extensions)
            return f"found {_listed(extensions)}; {_advice(kind)}"
        found = []
        if cause == "missing caption" and extensions:
            found.append(_listed(extensions))
        if cause == "missing caption" and sample.json is not None:
            document = parsed(self.file.read(*sample.json))
            texts = [repr(name) for name, value in document.items() if texts_of(value)]
            found += [f"the .json has {', '.join(texts[:_SHOWN])}"] if texts else []
        return f"{' and '.join(found)}; see data.caption_keys" if found else ""

    def _image(self, offset: int, size: int) -> tuple[int, int, int, int] | BadSample:
        if not size or size >= _LARGEST:
            return BadSample("image too large" if size else "empty image")
        for head in (_QUICK_HEAD, HEAD_BYTES):
            if (found := jpeg_size(self.file.read(offset, min(head, size)))) is not None:
                return offset, size, *found
        try:
            return offset, size, *open_with_pillow(self.file.read(offset, size)).size
        except BadSample as bad:
            return bad

    def _caption(self, offset: int, size: int) -> tuple[int, int, str] | BadSample:
        content = self.file.read(offset, size)
        self.digest.update(content)
        try:
            return offset, size, decoded(content)
        except BadSample as bad:
            return bad

    def _record(self, sample: _Sample) -> tuple[int, ...]:
        image = sample.image
        if image is None:
            raise BadSample("missing image")
        offset, size, number, length, in_json = self._chosen(sample)
        if isinstance(image, BadSample):
            raise image
        return (image[0], offset, image[1], size, image[2], image[3], length, number, in_json, 0)

    def _chosen(self, sample: _Sample) -> tuple[int, int, int, int, int]:
        """Offset and size of the caption, the number of its key, its characters, and whether it is in the JSON."""
        document, found = None, False
        for number, key in enumerate(self.caption_keys):
            if (caption := sample.captions.get(number)) is not None:
                if isinstance(caption, BadSample):
                    raise caption
                if caption[2]:
                    return *caption[:2], number, len(caption[2]), 0
                found = True
            if sample.json is not None:
                if document is None:
                    document = parsed(self.file.read(*sample.json))
                if texts := texts_of(document.get(key)):
                    self.digest.update("\0".join(texts).encode("utf-8", "surrogatepass"))
                    return *sample.json, number, len(texts[0]), 1
                found = found or key in document
        raise BadSample("empty caption" if found else "missing caption")


def decoded(content: bytes) -> str:
    """A caption's text without surrounding space. Raises BadSample where it is not UTF-8."""
    try:
        return content.removeprefix(_BOM).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise BadSample("caption is not UTF-8", str(error)) from error


def parsed(content: bytes) -> dict[str, Any]:
    """The JSON of a sample. Raises BadSample where it cannot be parsed, or is not an object."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadSample("damaged json", str(error)) from error
    if not isinstance(document, dict):
        raise BadSample("damaged json", "not an object")
    return document


def texts_of(value: object) -> list[str]:
    """The captions in a JSON value: a text, or a list of texts; empty ones are left out."""
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


def _listed(extensions: Sequence[str]) -> str:
    """The first few extensions, in quotes."""
    return ", ".join(repr(f".{extension}" if extension else "") for extension in extensions[:_SHOWN])


def _advice(suffixes: Sequence[str]) -> str:
    """What makes images with these suffixes readable."""
    if any(suffix in OTHER_SUFFIXES for suffix in suffixes):
        return "convert them to JPEG or PNG"
    return "see data.image_keys"
