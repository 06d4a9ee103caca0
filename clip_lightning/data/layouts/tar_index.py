"""Where the samples of a tar stand: a walk over its raw headers that unpacks nothing and trusts nothing.

Reads USTAR, PAX and GNU long names. Links, devices and sparse members are refused, sizes are checked against the file,
and whatever keeps a pair from being trained on is listed by cause. A key is a member's name up to the first dot after
the last slash, as webdataset has it; members of one key may stand anywhere in the shard.
"""

import gc
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import adler32

import numpy as np
import numpy.typing as npt

from clip_lightning.data.images.headers import HEAD_BYTES, jpeg_size, open_with_pillow
from clip_lightning.data.layouts.layout import BadSample

# One sample: where its image and its caption stand, the image's size, the caption's length in characters, and which of
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
_BLOCK = 512
_ADLER_MODULUS = 65521
_CHUNK = 1 << 16
_QUICK_HEAD = 1 << 12  # bytes of a JPEG that hold its header when it has no profile or thumbnail
_ZEROS = bytes(_BLOCK)
_IMAGE, _JSON = -1, -2  # what an extension stands for; others are numbers of caption keys
_REFUSED = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"6": "device", b"S": "sparse member"}
_LARGEST_HEADER = 1 << 20  # bytes of a PAX header or long name; more is damage
_LARGEST = 1 << 32  # bytes of a member that a record can hold


class ShardIndex(NamedTuple):
    """The samples of one tar.

    Attributes:
        records: RECORD [samples], in the order of the images.
        problems: name and cause of everything left out.
        digest: of all headers and captions.
    """

    records: npt.NDArray[np.void]
    problems: list[tuple[str, str]]
    digest: str


class _DamagedError(Exception):
    """The tar cannot be read further; the argument is the cause."""


class _Sample:
    """What was found under one key.

    Attributes:
        image: offset, size, width and height; or why it is none.
        json: offset and size.
        captions: by number of the caption key: offset, size and text; or why it is none.
    """

    __slots__ = ("captions", "image", "json")

    def __init__(self) -> None:
        self.image: tuple[int, int, int, int] | BadSample | None = None
        self.json: tuple[int, int] | None = None
        self.captions: dict[int, tuple[int, int, str] | BadSample] = {}


class _File:
    """A file read at offsets, a chunk at a time."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.descriptor).st_size
        self._start, self._chunk = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer only where the file ends."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._chunk):
            self._chunk = os.pread(self.descriptor, max(size, _CHUNK), offset)
            self._start, begin = offset, 0
        return self._chunk[begin : begin + size]

    def close(self) -> None:
        os.close(self.descriptor)


def index_tar(path: Path, image_keys: Sequence[str], caption_keys: Sequence[str]) -> ShardIndex:
    """Walks a tar.

    Args:
        image_keys: extensions of images, the first found is taken.
        caption_keys: extensions of caption members or keys of the `.json` member, the first that is not empty is taken.
    Raises: OSError where the file cannot be read.
    """
    file = _File(path)
    # A walk makes many small objects and no cycle: looking for some would take a fifth of its time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _Walk(file, image_keys, caption_keys).index()
    finally:
        file.close()
        if was_enabled:
            gc.enable()


class _Walk:
    def __init__(self, file: _File, image_keys: Sequence[str], caption_keys: Sequence[str]) -> None:
        self.file, self.caption_keys = file, list(caption_keys)
        self.roles = {"json": _JSON} | dict.fromkeys(image_keys, _IMAGE)
        self.roles |= {key: number for number, key in enumerate(caption_keys)}
        self.samples: dict[str, _Sample] = {}
        self.problems: list[tuple[str, str]] = []
        self.digest = hashlib.sha256()

    def index(self) -> ShardIndex:
        rows = []
        try:
            for name, offset, size in self._members():
                self._sort(name, offset, size)
        except _DamagedError as damage:
            self.problems.append(("", str(damage)))
        for key, sample in self.samples.items():
            try:
                rows.append(self._record(sample))
            except BadSample as bad:
                self.problems.append((key, bad.cause))
        records = np.array(rows, RECORD)
        records = records[np.argsort(records["image_offset"], kind="stable")]
        return ShardIndex(records, self.problems, self.digest.hexdigest()[:16])

    def _members(self) -> Iterator[tuple[str, int, int]]:
        """Name, offset and size of the regular members.

        Raises: _DamagedError where the tar cannot be read to its end.
        """
        file, offset = self.file, 0
        long_name, pax = "", dict[str, str]()
        if not file.size:
            raise _DamagedError("empty shard")
        if file.read(0, 2) == b"\x1f\x8b" or file.read(0, 4) in (b"\x28\xb5\x2f\xfd", b"BZh9"):
            raise _DamagedError("compressed shard (unpack it to .tar)")
        while True:
            header = file.read(offset, _BLOCK)
            if header == _ZEROS:
                return
            if len(header) < _BLOCK:
                raise _DamagedError("truncated shard")
            name, size, kind = _parse(header, offset)
            self.digest.update(header[:157])  # name, owner, size, time, checksum of all of it, and kind
            if kind in b"xgLK":
                if size > min(_LARGEST_HEADER, file.size - offset):
                    raise _DamagedError("truncated shard")
                content = file.read(offset + _BLOCK, size)
                if kind == b"x":
                    pax = _parse_pax(content)
                elif kind == b"L":
                    long_name = content.rstrip(b"\0").decode("utf-8", "backslashreplace")
            else:
                if pax or long_name:
                    size, name = int(pax.get("size", size)), pax.get("path", "") or long_name or name
                if offset + _BLOCK + size > file.size:
                    raise _DamagedError("truncated shard")
                if kind in _REFUSED or (pax and any(key.startswith("GNU.sparse") for key in pax)):
                    self.problems.append((name, _REFUSED.get(kind, "sparse member")))
                elif kind in b"0\0" + b"7":
                    yield name, offset + _BLOCK, size
                long_name, pax = "", {}
            offset += _BLOCK + (size + _BLOCK - 1) // _BLOCK * _BLOCK

    def _sort(self, name: str, offset: int, size: int) -> None:
        """Puts a member to its key; a second one of the same kind is a problem, and the first one stands."""
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        if (role := self.roles.get(extension)) is None and (role := self.roles.get(extension.lower())) is None:
            return
        key = folder + slash + stem
        if (sample := self.samples.get(key)) is None:
            sample = self.samples[key] = _Sample()
        if role == _IMAGE and sample.image is None:
            sample.image = self._image(offset, size)
        elif role == _JSON and sample.json is None:
            sample.json = offset, size
        elif role >= 0 and role not in sample.captions:
            sample.captions[role] = self._caption(offset, size)
        else:
            self.problems.append((name, "duplicate key"))

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
        return content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise BadSample("caption is not UTF-8", str(error)) from error


def parsed(content: bytes) -> dict[str, Any]:
    """The JSON of a sample. Raises BadSample where it is none, or no object."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadSample("damaged json", str(error)) from error
    if not isinstance(document, dict):
        raise BadSample("damaged json", "no object")
    return document


def texts_of(value: object) -> list[str]:
    """The captions in a JSON value: a text, or a list of texts; empty ones are left out."""
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


def _parse(header: bytes, offset: int) -> tuple[str, int, bytes]:
    """Name, size and kind of a header block. Raises _DamagedError where its checksum is wrong."""
    try:
        # Adler-32's lower half is 1 + the sum of the bytes, modulo a prime: a checksum at the speed of C.
        written = header[148:156]
        if ((adler32(header) & 0xFFFF) - 1 - sum(written) + 256 - _octal(written)) % _ADLER_MODULUS:
            raise ValueError("checksum")
        field = header[124:136]
        if field[0] & 0x80:  # GNU: a number in base 256
            size = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        else:
            size = int(field[:11], 8) if field[11] == 0 and field[0] == 48 else _octal(field)
    except ValueError as error:
        raise _DamagedError("damaged shard" if offset else "not a tar") from error
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "backslashreplace"), size, header[156:157]


def _octal(field: bytes) -> int:
    return int(field.strip(b" \0") or b"0", 8)


def _parse_pax(content: bytes) -> dict[str, str]:
    """The records `length key=value` of a PAX header. Raises _DamagedError where they are none."""
    values = {}
    while content and content[0]:
        length, space, _ = content.partition(b" ")
        if not space or not length.isdigit() or not len(length) + 1 < int(length) <= len(content):
            raise _DamagedError("damaged shard")
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        values[key.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        content = content[int(length) :]
    if not values.get("size", "0").isdigit():
        raise _DamagedError("damaged shard")
    return values
