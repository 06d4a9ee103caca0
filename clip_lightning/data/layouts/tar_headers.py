"""The members of a tar, from its raw headers: nothing is unpacked and no field is trusted.

Reads USTAR, PAX and GNU long names as Python's tarfile does. Numbers are digits only, sizes are never negative and are
checked against the file, and every step moves forward by at least one block, so that the walk always ends.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol
from zlib import adler32

BLOCK = 512
_ADLER_MODULUS = 65521
_CHUNK = 1 << 16
_ZEROS = bytes(BLOCK)
_REFUSED = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"6": "device", b"S": "sparse member"}
_REGULAR = b"0\0" + b"7"
_FOLDERS_AND_LABELS = b"5DV"
_WITHOUT_CONTENT = b"123456"  # whatever their size field says, as in tarfile
_LARGEST_HEADER = 1 << 20  # bytes of a PAX header or long name; more is damage
_LARGEST_PADDING = 1 << 20  # zeros that tar programs write after the last member, at most
_MOST_DIGITS = 20  # of a number in a PAX header


class DamagedTarError(Exception):
    """The tar cannot be read further.

    Attributes:
        cause: a short fixed phrase.
        offset: byte up to which it could be read.
    """

    def __init__(self, cause: str, offset: int = 0) -> None:
        super().__init__(cause)
        self.cause, self.offset = cause, offset


class ReadableFile(Protocol):
    """A file that can be read at offsets.

    Attributes:
        size: bytes.
    """

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer only where the file ends."""

    def close(self) -> None:
        """Closes the file."""


class ChunkedFile:
    """A file read at offsets, a chunk at a time."""

    def __init__(self, path: Path) -> None:
        """Raises: OSError where it cannot be opened."""
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
        """Closes the file."""
        os.close(self.descriptor)


def members(
    file: ReadableFile, digest: Callable[[bytes], None], refuse: Callable[[str, str], None]
) -> Iterator[tuple[str, int, int]]:
    """Name, offset of the content in bytes, and its size in bytes, of each regular member.

    Args:
        digest: called with the part of each header that identifies the member.
        refuse: called with name and cause of a link, device, sparse or unknown member.
    Raises: DamagedTarError where the tar cannot be read to its end.
    """
    offset = 0
    long_name, pax = "", dict[str, str]()
    if not file.size:
        raise DamagedTarError("empty shard")
    if file.read(0, 2) == b"\x1f\x8b" or file.read(0, 4) in (b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zX"):
        raise DamagedTarError("compressed shard (unpack it to .tar)")
    while True:
        header = file.read(offset, BLOCK)
        if header == _ZEROS:
            _check_end(file, offset)
            return
        if len(header) < BLOCK:
            raise DamagedTarError("truncated shard", min(offset, file.size))  # the padding may be cut as well
        name, size, kind = _parse(header, offset)
        digest(header[:157])  # name, owner, size, time, checksum of all of it, and kind
        content = offset + BLOCK
        if kind in b"xgLK":
            if size > min(_LARGEST_HEADER, file.size - content):
                raise DamagedTarError("truncated shard", offset)
            if kind == b"x":
                pax = _parse_pax(file.read(content, size), offset)
            elif kind == b"L":
                long_name = file.read(content, size).partition(b"\0")[0].decode("utf-8", "backslashreplace")
        else:
            if pax or long_name:
                size, name = int(pax.get("size", size)), pax.get("path", "") or long_name or name
            if kind in _WITHOUT_CONTENT:
                size = 0
            elif kind == b"S":
                content = _after_sparse_map(file, header, content)
            if content + size > file.size:
                raise DamagedTarError("truncated shard", offset)
            if kind in _REFUSED or (pax and any(key.startswith("GNU.sparse") for key in pax)):
                refuse(name, _REFUSED.get(kind, "sparse member"))
            elif kind in _REGULAR:
                yield name, content, size
            elif kind not in _FOLDERS_AND_LABELS:
                refuse(name, "unknown kind of member")
            long_name, pax = "", {}
        offset = content + (size + BLOCK - 1) // BLOCK * BLOCK


def _check_end(file: ReadableFile, offset: int) -> None:
    """Raises DamagedTarError where more than padding follows the end marker at `offset`."""
    if file.size - offset > _LARGEST_PADDING:
        raise DamagedTarError("damaged shard (zeros or more data after its end)", offset)
    if file.read(offset, file.size - offset).strip(b"\0"):
        raise DamagedTarError("damaged shard (zeros or more data after its end)", offset)


def _after_sparse_map(file: ReadableFile, header: bytes, content: int) -> int:
    """Where the content of GNU's old sparse member begins: after the blocks that continue its map."""
    continued = header[482]
    while continued:
        block = file.read(content, BLOCK)
        if len(block) < BLOCK:
            raise DamagedTarError("truncated shard", content)
        continued, content = block[504], content + BLOCK
    return content


def _parse(header: bytes, offset: int) -> tuple[str, int, bytes]:
    """Name, size and kind of a header block. Raises DamagedTarError where its checksum or a number is wrong."""
    try:
        # Adler-32's lower half is 1 + the sum of the bytes, modulo a prime: a checksum at the speed of C.
        written = header[148:156]
        if ((adler32(header) & 0xFFFF) - 1 - sum(written) + 256 - _octal(written)) % _ADLER_MODULUS:
            raise ValueError("checksum")
        field = header[124:136]
        if field[11] == 0 and (digits := field[:11]).isdigit():  # as nearly every program writes it
            size = int(digits, 8)
        else:
            size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)  # 0x80: GNU's base 256
    except ValueError as error:
        raise DamagedTarError("damaged shard" if offset else "not a tar", offset) from error
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "backslashreplace"), size, header[156:157]


def _octal(field: bytes) -> int:
    """The number in a field of octal digits. Raises ValueError where anything but digits is in it."""
    digits = field.partition(b"\0")[0].strip()
    if not digits:
        return 0
    if not digits.isdigit():
        raise ValueError("a number is not digits only")
    return int(digits, 8)


def _parse_pax(content: bytes, offset: int) -> dict[str, str]:
    """The records `length key=value` of a PAX header. Raises DamagedTarError where they are malformed."""
    values, start = {}, 0
    while start < len(content) and content[start]:
        digits, space, _ = content[start : start + _MOST_DIGITS + 1].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        if not len(digits) + 1 < length <= len(content) - start:
            raise DamagedTarError("damaged shard", offset)
        key, _, value = content[start + len(digits) + 1 : start + length - 1].partition(b"=")
        values[key.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        start += length
    size = values.get("size", "0")
    if not (size.isascii() and size.isdigit() and len(size) <= _MOST_DIGITS):
        raise DamagedTarError("damaged shard", offset)
    return values
