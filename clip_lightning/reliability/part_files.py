"""The files of a checkpoint's parts: written by torch.save, with their sizes and checksums."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch


class _HashedStream:
    """A binary stream that computes the checksum of what is written, and keeps the error of a failed write."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.digest, self.size = stream, hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.stream.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.digest.update(data)
        self.size += written
        return written

    def flush(self) -> None:
        self.stream.flush()


def save_part(part: Any, stream: BinaryIO) -> dict[str, Any]:
    """Writes one part and syncs it; returns its size and checksum.

    Raises: OSError, also where torch wraps that of a failed write.
    """
    hashed = _HashedStream(stream)
    try:
        torch.save(part, hashed)  # type: ignore[arg-type]
    except RuntimeError:
        if hashed.failure is not None:
            raise hashed.failure from None
        raise
    stream.flush()
    os.fsync(stream.fileno())
    return {"bytes": hashed.size, "sha256": hashed.digest.hexdigest()}


def fingerprint(file: Path) -> dict[str, Any] | None:
    """Size and checksum of a file, as `save_part` returns them; None where it cannot be read."""
    with suppress(OSError), file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    return None
