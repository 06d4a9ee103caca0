"""Checkpoints on disk: written whole or not at all, chosen by what verifies and never by name or date.

A checkpoint is a folder named by its samples seen. Its files are written into a temporary folder beside it and synced,
the manifest with sizes and checksums last, and then the folder is renamed: whatever instant a process dies at, what
stands under a final name is complete. Knows no model and no Trainer; `checkpoint_callback` brings the state here.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from clip_lightning.errors import CheckpointError

MANIFEST = "manifest.json"
_TEMPORARY = ".writing-"
_FORMAT = 1
# Space asked for beyond the state itself: the file format's own bytes, and what else is written meanwhile.
_SPACE_FACTOR, _SPACE_EXTRA = 1.05, 2**20
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found as the manifest has them."""

    path: Path
    samples_seen: int
    about: dict[str, Any]

    def load(self, part: str) -> Any:
        """The object saved as `part`, its tensors on the CPU. Only tensors and plain values are ever unpickled.

        Raises:
            CheckpointError: there is no such part, or it holds something else.
        """
        file = self.path / f"{part}.pt"
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
            reason = str(error).split("\n")[0]
            raise CheckpointError(f"{file}: this part of a checkpoint cannot be read ({reason})") from error


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, path: Path, *, keep_last: int, reach: int = 0, notify: Callable[[str], None] = print) -> None:
        """Args.

        path: the folder; made when the first checkpoint is written.
        keep_last: older checkpoints beyond so many are removed after each save.
        reach: samples; beyond `keep_last`, one checkpoint stays that is at least so much older than the newest.
        notify: is told, in a sentence each, of damaged checkpoints and of a full disk.
        """
        self.path, self.keep_last, self.reach, self.notify = path, keep_last, reach, notify

    def save(self, samples_seen: int, parts: Mapping[str, Any], about: Mapping[str, Any]) -> Path | None:
        """Writes a checkpoint, then removes old ones.

        Args:
            samples_seen: where the run is.
            parts: name -> tensors and plain values in dictionaries and lists.
            about: plain values that are kept in the manifest.

        Returns:
            Its folder; None when the disk has no room even after old ones were removed. What stood before still
            stands, and training can go on.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.remove_temporary()
        needed = int(_SPACE_FACTOR * sum(_tensor_bytes(part) for part in parts.values())) + _SPACE_EXTRA
        for keep in (self.keep_last, 1):
            if keep < self.keep_last:
                self._prune(keep)
            try:
                if (free := shutil.disk_usage(self.path).free) < needed:
                    raise OSError(errno.ENOSPC, f"{free / 2**20:,.0f} MiB are free, {needed / 2**20:,.0f} needed")
                written = self._write(samples_seen, parts, dict(about))
            except OSError as error:
                self.remove_temporary()
                if error.errno not in _DISK_FULL:
                    raise
                problem = error.strerror
            else:
                self._prune(self.keep_last)
                return written
        self.notify(
            f"warning: no checkpoint at {samples_seen:,} samples, the disk of {self.path} is full ({problem}); "
            f"training goes on; the newest checkpoint is {next(iter(self.numbers()), None) or 'none'}"
        )
        return None

    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged newer ones are named and passed over. None without any.

        Args: at_most: samples seen beyond which checkpoints do not count.
        """
        for number in self.numbers():
            if at_most is not None and number > at_most:
                continue
            try:
                return open_checkpoint(self.path / name_of(number))
            except CheckpointError as error:
                self.notify(f"warning: {error}; going back to an older one")
        return None

    def remove_after(self, samples_seen: int) -> None:
        """Removes the checkpoints of more samples: a run that went back takes another course from there."""
        for number in self.numbers():
            if number > samples_seen:
                self._remove(self.path / name_of(number))

    def numbers(self) -> list[int]:
        """Samples seen of all checkpoints, verified or not, newest first."""
        if not self.path.is_dir():
            return []
        return sorted((int(child.name) for child in self.path.iterdir() if child.name.isdecimal()), reverse=True)

    def remove_temporary(self) -> None:
        """Removes what a killed process left unfinished."""
        for child in self.path.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(child)

    def _write(self, samples_seen: int, parts: Mapping[str, Any], about: dict[str, Any]) -> Path:
        temporary, final = self.path / f"{_TEMPORARY}{samples_seen}", self.path / name_of(samples_seen)
        temporary.mkdir()
        files = {}
        for name, part in parts.items():
            with (temporary / f"{name}.pt").open("wb") as stream:
                files[f"{name}.pt"] = _save(part, stream)
        manifest = {"format": _FORMAT, "samples_seen": samples_seen, "about": about, "files": files}
        with (temporary / MANIFEST).open("w", encoding="utf-8") as text:
            json.dump(manifest, text, indent=1)
            text.flush()
            os.fsync(text.fileno())
        sync_folder(temporary)
        if final.exists():
            self._remove(final)
        temporary.rename(final)
        sync_folder(self.path)
        return final

    def _prune(self, keep: int) -> None:
        """Removes all but the newest `keep`, those that `reach` asks for, and the newest that verifies."""
        numbers = self.numbers()
        kept = numbers[:keep]
        if self.reach and numbers:
            old = [number for number in numbers if number <= numbers[0] - self.reach][:1]
            # Its successor as well: without it none would come of age, and the old one would stay for ever.
            kept += old + [number for number in numbers if not old or number > old[0]][-1:]
        if not any(_verifies(self.path / name_of(number)) for number in kept):
            kept += [number for number in numbers[keep:] if _verifies(self.path / name_of(number))][:1]
        for number in numbers:
            if number not in kept:
                self._remove(self.path / name_of(number))

    def _remove(self, folder: Path) -> None:
        """Out of sight first, so that a half-removed checkpoint never stands under a final name."""
        hidden = folder.rename(self.path / f"{_TEMPORARY}removing-{folder.name}")
        shutil.rmtree(hidden)


class _Hashed:
    """A file that knows the checksum of what went into it, and why a write failed."""

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


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, after every file was compared with the manifest.

    Raises:
        CheckpointError: it is missing, no checkpoint, or damaged.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{path} is no checkpoint (it has no {MANIFEST})")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        files, samples_seen, about = content["files"], int(content["samples_seen"]), dict(content["about"])
        if content["format"] != _FORMAT:
            raise CheckpointError(f"{path}: format {content['format']} is not known here; this version reads {_FORMAT}")
        damaged = [name for name, written in files.items() if _fingerprint(path / name) != written]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest} is damaged and cannot be read") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: {', '.join(damaged)} is not what was written")
    return Checkpoint(path, samples_seen, about)


def name_of(samples_seen: int) -> str:
    """Folder name of a checkpoint."""
    return f"{samples_seen:012d}"


def sync_folder(path: Path) -> None:
    """Makes renames in a folder last through a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Writes a small text file, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def _save(part: Any, stream: BinaryIO) -> dict[str, Any]:
    """Serialises one part and syncs it. Raises OSError, also where torch wraps the one of a failed write."""
    hashed = _Hashed(stream)
    try:
        torch.save(part, hashed)  # type: ignore[arg-type]
    except RuntimeError:
        if hashed.failure is not None:
            raise hashed.failure from None
        raise
    stream.flush()
    os.fsync(stream.fileno())
    return {"bytes": hashed.size, "sha256": hashed.digest.hexdigest()}


def _fingerprint(file: Path) -> dict[str, Any] | None:
    with suppress(OSError), file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    return None


def _verifies(path: Path) -> bool:
    try:
        open_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _tensor_bytes(part: Any) -> int:
    if isinstance(part, torch.Tensor):
        return part.nbytes
    if isinstance(part, Mapping):
        return sum(_tensor_bytes(value) for value in part.values())
    if isinstance(part, list | tuple):
        return sum(_tensor_bytes(value) for value in part)
    return 0
