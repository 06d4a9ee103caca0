"""Checkpoints on disk: written whole or not at all, chosen by what verifies and never by name or date.

A checkpoint is a folder named by its samples seen. Its files are written into a temporary folder beside it and synced,
the manifest with sizes and checksums last, and then the folder is renamed: whatever instant a process dies at, what
stands under a final name is complete. Of a sharded state every rank writes the rows it holds, beside rank 0's tree; the
files are torch's, of tensors and plain values, and not DCP's, whose index is a pickle that runs what it names.
Knows no model and no Trainer; `checkpoint_callback` brings the state here.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, NamedTuple

import torch

from clip_lightning.errors import CheckpointError
from clip_lightning.reliability.atomic_files import sync_folder
from clip_lightning.reliability.ranks import Ranks
from clip_lightning.reliability.shards import whole, with_rows

MANIFEST = "manifest.json"
_TEMPORARY = ".writing-"
_SHARD = ".shard-"
_FORMAT = 1
# Space asked for beyond the state itself: the file format's own bytes, and what else is written meanwhile.
_SPACE_FACTOR, _SPACE_EXTRA = 1.05, 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found as the manifest has them."""

    path: Path
    samples_seen: int
    about: dict[str, Any]
    files: tuple[str, ...]

    def load(self, part: str) -> Any:
        """The object saved as `part`, its tensors whole, on the CPU.

        Raises:
            CheckpointError: there is no such part, or it holds something else.
        """
        return whole(self.saved(part))

    def saved(self, part: str) -> Any:
        """As `load`, but what ranks saved in shards is `SavedRows`, and nothing is read before it is used.

        Only tensors and plain values are ever unpickled.
        """
        num_shards = sum(name.startswith(f"{part}{_SHARD}") for name in self.files)
        shards = [self._read(shard_name(part, shard)) for shard in range(1, num_shards + 1)]
        return with_rows(self._read(part), shards)

    def _read(self, name: str) -> Any:
        file = self.path / f"{name}.pt"
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
            reason = str(error).split("\n")[0]
            raise CheckpointError(f"{file}: this part of a checkpoint cannot be read ({reason})") from error


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(
        self,
        path: Path,
        *,
        keep_last: int,
        keep_every: int = 0,
        reach: int = 0,
        notify: Callable[[str], None] = print,
    ) -> None:
        """Args.

        path: the folder; made when the first checkpoint is written.
        keep_last: older checkpoints beyond so many are removed after each save.
        keep_every: samples; the first checkpoint at or past each multiple is never removed. 0: none is kept for that.
        reach: samples; beyond `keep_last`, one checkpoint stays that is at least so much older than the newest.
        notify: is told, in a sentence each, of damaged checkpoints and of a full disk.
        """
        self.path, self.notify = path, notify
        self.keep_last, self.keep_every, self.reach = keep_last, keep_every, reach

    def save(
        self, samples_seen: int, parts: Mapping[str, Any], about: Mapping[str, Any], ranks: Ranks | None = None
    ) -> Path | None:
        """Writes a checkpoint, then removes old ones.

        Args:
            samples_seen: where the run is.
            parts: name -> tensors and plain values in dictionaries and lists, of this rank.
            about: plain values that are kept in the manifest; rank 0's count.
            ranks: that write this checkpoint together; each calls this.

        Returns:
            Its folder, on every rank; None when it cannot be written, even after old ones were removed. What stood
            before still stands, and training can go on.
        """
        ranks = ranks or Ranks()
        problem = self._attempt(samples_seen, parts, about, ranks, self.keep_last)
        if problem and problem.is_full:
            problem = self._attempt(samples_seen, parts, about, ranks, keep=1)
        if problem is None:
            if ranks.rank == 0:
                self._tidy()
            return self.path / name_of(samples_seen)
        if ranks.rank == 0:
            self.notify(
                f"warning: no checkpoint at {samples_seen:,} samples, {self.path} takes none ({problem.told}); "
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
        """Removes what a killed process left unfinished; what cannot go now, since NFS keeps open files, goes later."""
        for child in self.path.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(child, ignore_errors=True)

    def _attempt(
        self, samples_seen: int, parts: Mapping[str, Any], about: Mapping[str, Any], ranks: Ranks, keep: int
    ) -> "_Problem | None":
        """Writes a checkpoint; returns what went wrong, the same on every rank."""
        temporary = self.path / f"{_TEMPORARY}{samples_seen}"
        size = sum(ranks.exchange(sum(_tensor_bytes(part) for part in parts.values())))
        problem = _problem(lambda: self._prepare(temporary, size, keep)) if ranks.rank == 0 else None
        if problem := ranks.exchange(problem)[0]:
            return problem
        files: dict[str, Any] = {}
        answers = ranks.exchange((files, _problem(lambda: _write(temporary, parts, files))))
        problem = next((told for _, told in answers if told), None)
        if ranks.rank == 0:
            all_files = {name: written for found, _ in answers for name, written in found.items()}
            manifest = {"format": _FORMAT, "samples_seen": samples_seen, "about": dict(about), "files": all_files}
            problem = problem or _problem(lambda: self._finish(temporary, manifest))
            if problem:
                self.remove_temporary()
        answer: _Problem | None = ranks.exchange(problem)[0]
        return answer

    def _prepare(self, temporary: Path, size: int, keep: int) -> None:
        """An empty folder, and room for so many bytes of tensors; for that all but `keep` checkpoints may go."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.remove_temporary()
        if keep < self.keep_last:
            self._prune(keep)
        needed, free = int(_SPACE_FACTOR * size) + _SPACE_EXTRA, shutil.disk_usage(self.path).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{free / 2**20:,.0f} MiB are free, {needed / 2**20:,.0f} needed")
        temporary.mkdir()

    def _finish(self, temporary: Path, manifest: dict[str, Any]) -> None:
        """Gives a folder whose files are complete its manifest and its name."""
        with (temporary / MANIFEST).open("w", encoding="utf-8") as text:
            json.dump(manifest, text, indent=1)
            text.flush()
            os.fsync(text.fileno())
        sync_folder(temporary)
        final = self.path / name_of(manifest["samples_seen"])
        if final.exists():
            self._remove(final)
        temporary.rename(final)
        sync_folder(self.path)

    def _tidy(self) -> None:
        """Removes old checkpoints; the new one stands whether or not that can be done."""
        try:
            self._prune(self.keep_last)
        except OSError as error:
            self.notify(f"warning: an old checkpoint stays for now ({error.strerror or error}: {error.filename})")

    def _prune(self, keep: int) -> None:
        """Removes all but the newest `keep`, what `keep_every` and `reach` ask for, and the newest that verifies."""
        numbers = self.numbers()
        kept = numbers[:keep]
        if self.reach and numbers:
            old = [number for number in numbers if number <= numbers[0] - self.reach][:1]
            # Its successor as well: without it none would come of age, and the old one would stay for ever.
            kept += old + [number for number in numbers if not old or number > old[0]][-1:]
        if not any(_verifies(self.path / name_of(number)) for number in kept):
            kept += [number for number in numbers[keep:] if _verifies(self.path / name_of(number))][:1]
        milestones = self._milestones(numbers)
        for number in numbers:
            if number not in kept and number not in milestones:
                self._remove(self.path / name_of(number))

    def _milestones(self, numbers: list[int]) -> set[int]:
        """The first at or past each multiple of `keep_every`."""
        first: dict[int, int] = {}
        for number in sorted(numbers) if self.keep_every else []:
            first.setdefault(number // self.keep_every, number)
        return {number for multiple, number in first.items() if multiple > 0}

    def _remove(self, folder: Path) -> None:
        """Out of sight first, so that a half-removed checkpoint never stands under a final name."""
        hidden = folder.rename(self.path / f"{_TEMPORARY}removing-{folder.name}-{time.time_ns()}")
        shutil.rmtree(hidden, ignore_errors=True)


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


def open_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """The checkpoint in a folder, after every file was compared with the manifest.

    Args:
        verify: False where another rank has compared them.

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
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda name: _fingerprint(path / name), files)) if verify else list(files.values())
        damaged = [name for name, now in zip(files, found, strict=True) if now != files[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest} is damaged and cannot be read") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: {', '.join(damaged)} is not what was written")
    return Checkpoint(path, samples_seen, about, tuple(files))


def shard_name(part: str, shard: int) -> str:
    """Name of the part in which shard 1, 2, ... keeps its rows of `part`."""
    return f"{part}{_SHARD}{shard}"


def name_of(samples_seen: int) -> str:
    """Folder name of a checkpoint."""
    return f"{samples_seen:012d}"


class _Problem(NamedTuple):
    """told: what the disk has against it. is_full: whether room would help."""

    told: str
    is_full: bool


def _problem(work: Callable[[], None]) -> _Problem | None:
    """What is wrong; None where the work was done."""
    try:
        work()
    except OSError as error:
        return _Problem(error.strerror or str(error), error.errno in _FULL)
    return None


def _write(folder: Path, parts: Mapping[str, Any], files: dict[str, Any]) -> None:
    """Writes parts and notes their sizes and checksums in `files`."""
    for name, part in parts.items():
        with (folder / f"{name}.pt").open("wb") as stream:
            files[f"{name}.pt"] = _save(part, stream)


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
