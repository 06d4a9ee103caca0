"""Checkpoints on disk: complete or absent, and chosen by their checksums, never by name or date.

A checkpoint is a folder named by its samples seen. Its files are written into a temporary folder beside it and synced,
the manifest with sizes and checksums last, and then the folder is renamed: a folder with a final name is complete,
whenever a process dies. Of a sharded state every rank writes the rows it holds, beside rank 0's tree. The files are
written by torch.save and hold tensors and plain values; DCP's index is a pickle that can run code.
This module depends on no model and no Trainer; `checkpoint_callback` collects the state.
"""

import errno
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
from typing import Any, NamedTuple

import torch

from clip_lightning.errors import CheckpointError, UserError
from clip_lightning.formatting import bytes_shown
from clip_lightning.reliability.atomic_files import sync_folder
from clip_lightning.reliability.part_files import fingerprint, save_part
from clip_lightning.reliability.rank_group import RankGroup
from clip_lightning.reliability.shards import whole, with_rows

MANIFEST = "manifest.json"
_TEMPORARY = ".writing-"
# An earlier checkpoint of the same samples while its successor is renamed; it counts until that is done.
_REPLACED = ".replaced-"
_SHARD = ".shard-"
_FORMAT = 1
# Space required beyond the state itself: bytes of the file format, and of other files written at the same time.
_SPACE_FACTOR, _SPACE_EXTRA = 1.05, 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE_BYTES = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match its manifest."""

    path: Path
    samples_seen: int
    about: dict[str, Any]
    files: tuple[str, ...]

    def load(self, part: str) -> Any:
        """The object saved as `part`, its tensors complete, on the CPU.

        Raises:
            CheckpointError: the part is missing or cannot be read.
        """
        return whole(self.saved(part))

    def saved(self, part: str) -> Any:
        """As `load`, but sharded tensors are `SavedRows`, and nothing is read before it is used.

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
        keep_last: number of newest checkpoints kept after each save.
        keep_every: samples; the first checkpoint at or past each multiple is never removed. 0: off.
        reach: samples; one more checkpoint is kept that is at least so much older than the newest.
        notify: receives a sentence for each damaged checkpoint and each failed save.
        """
        self.path, self.notify = path, notify
        self.keep_last, self.keep_every, self.reach = keep_last, keep_every, reach

    def save(
        self, samples_seen: int, parts: Mapping[str, Any], about: Mapping[str, Any], ranks: RankGroup | None = None
    ) -> Path | None:
        """Writes a checkpoint, then removes old ones.

        Args:
            samples_seen: position of the run.
            parts: name -> tensors and plain values in dictionaries and lists, of this rank.
            about: plain values for the manifest; those of rank 0 are used.
            ranks: the ranks that write this checkpoint together; each calls this function.

        Returns:
            Its folder, on every rank; None when it cannot be written, even after old ones were removed. The earlier
            checkpoints are unchanged, and training can continue.
        """
        ranks = ranks or RankGroup()
        problem = self._attempt(samples_seen, parts, about, ranks, self.keep_last)
        if problem and problem.is_full:
            problem = self._attempt(samples_seen, parts, about, ranks, keep=1)
        if problem is None:
            if ranks.rank == 0:
                self._tidy()
            return self.path / name_of(samples_seen)
        if ranks.rank == 0:
            self.notify(
                f"warning: no checkpoint at {samples_seen:,} samples, {self.path} cannot take it ({problem.message}); "
                f"training continues; the newest checkpoint is {next(iter(self.numbers()), None) or 'none'}"
            )
        return None

    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged newer ones are reported and skipped. None if there is none.

        Args: at_most: samples seen beyond which checkpoints do not count.
        """
        for number in self.numbers():
            if at_most is not None and number > at_most:
                continue
            try:
                return open_checkpoint(self._folder_of(number))
            except CheckpointError as error:
                self.notify(f"warning: {error}; going back to an older one")
        return None

    def remove_after(self, samples_seen: int) -> None:
        """Removes the checkpoints of more samples, after a rollback."""
        for number in self.numbers():
            if number > samples_seen:
                self._remove(self._folder_of(number))

    def numbers(self) -> list[int]:
        """Samples seen of all checkpoints, verified or not, newest first."""
        if not self.path.is_dir():
            return []
        names = {child.name.removeprefix(_REPLACED) for child in self.path.iterdir()}
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def check_writable(self, num_bytes: int) -> None:
        """Makes the folder, writes a probe, and compares free space with the size of the checkpoints to come.

        Two are on the disk at a time, since the older one is removed when the newer one is complete.

        Args: num_bytes: of the tensors of one checkpoint, of all ranks.
        Raises: UserError where the folder takes no checkpoint.
        """
        probe = self.path / f"{_TEMPORARY}probe"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.remove_temporary()
            with probe.open("wb") as stream:
                stream.write(bytes(min(num_bytes, _PROBE_BYTES)))
                stream.flush()
                os.fsync(stream.fileno())
            probe.unlink()
        except OSError as error:
            with suppress(OSError):
                probe.unlink()
            raise UserError(
                f"{self.path}: no checkpoint can be written there ({error.strerror}); make room, or put runs= elsewhere"
            ) from error
        numbers = self.numbers()
        needed = _with_overhead(num_bytes) * (1 if numbers else 2)
        free = shutil.disk_usage(self.path).free + sum(_folder_bytes(self._folder_of(n)) for n in numbers[1:])
        if free < needed:
            raise UserError(
                f"{self.path}: checkpoints need {bytes_shown(needed)} more, and {bytes_shown(free)} are free; make "
                "room, or put runs= elsewhere"
            )

    def remove_temporary(self) -> None:
        """Removes unfinished files of a killed process; files that NFS still keeps open are removed later."""
        for child in self.path.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(child, ignore_errors=True)
        for child in self.path.glob(f"{_REPLACED}*"):
            if (self.path / child.name.removeprefix(_REPLACED)).exists():
                with suppress(OSError):
                    self._remove(child)

    def _attempt(
        self, samples_seen: int, parts: Mapping[str, Any], about: Mapping[str, Any], ranks: RankGroup, keep: int
    ) -> "_Problem | None":
        """Writes a checkpoint; returns what went wrong, the same on every rank."""
        temporary = self.path / f"{_TEMPORARY}{samples_seen}"
        size = sum(ranks.exchange(sum(_tensor_bytes(part) for part in parts.values())))
        problem = _problem(lambda: self._prepare(temporary, size, keep)) if ranks.rank == 0 else None
        if problem := ranks.exchange(problem)[0]:
            return problem
        files: dict[str, Any] = {}
        answers = ranks.exchange((files, _problem(lambda: _write(temporary, parts, files))))
        problem = next((found for _, found in answers if found), None)
        if ranks.rank == 0:
            all_files = {name: written for written_files, _ in answers for name, written in written_files.items()}
            manifest = {"format": _FORMAT, "samples_seen": samples_seen, "about": dict(about), "files": all_files}
            problem = problem or _problem(lambda: self._finish(temporary, manifest))
            if problem:
                self.remove_temporary()
        answer: _Problem | None = ranks.exchange(problem)[0]
        return answer

    def _prepare(self, temporary: Path, size: int, keep: int) -> None:
        """Makes an empty folder, and room for so many bytes of tensors by removing all but `keep` checkpoints."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.remove_temporary()
        if keep < self.keep_last:
            self._prune(keep)
        needed, free = _with_overhead(size), shutil.disk_usage(self.path).free
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
            final.rename(self.path / f"{_REPLACED}{final.name}")
        temporary.rename(final)
        sync_folder(self.path)
        self.remove_temporary()

    def _tidy(self) -> None:
        """Removes old checkpoints; a failure is only reported, since the new one is complete."""
        try:
            self._prune(self.keep_last)
        except OSError as error:
            self.notify(
                f"warning: an old checkpoint cannot be removed now ({error.strerror or error}: {error.filename})"
            )

    def _prune(self, keep: int) -> None:
        """Removes all but the newest `keep`, the newest that verifies, and those for `keep_every` and `reach`."""
        numbers = self.numbers()
        kept = numbers[:keep]
        if self.reach and numbers:
            old = [number for number in numbers if number <= numbers[0] - self.reach][:1]
            # Its successor as well: otherwise none would ever replace it.
            kept += old + [number for number in numbers if not old or number > old[0]][-1:]
        if not any(_verifies(self._folder_of(number)) for number in kept):
            kept += [number for number in numbers[keep:] if _verifies(self._folder_of(number))][:1]
        milestones = self._milestones(numbers)
        for number in numbers:
            if number not in kept and number not in milestones:
                self._remove(self._folder_of(number))

    def _folder_of(self, number: int) -> Path:
        """Folder of a checkpoint; the earlier one of this place where its successor did not get its name."""
        final = self.path / name_of(number)
        replaced = self.path / f"{_REPLACED}{final.name}"
        return replaced if replaced.exists() and not final.exists() else final

    def _milestones(self, numbers: list[int]) -> set[int]:
        """The first at or past each multiple of `keep_every`."""
        first: dict[int, int] = {}
        for number in sorted(numbers) if self.keep_every else []:
            first.setdefault(number // self.keep_every, number)
        return {number for multiple, number in first.items() if multiple > 0}

    def _remove(self, folder: Path) -> None:
        """Renames the folder first, so that a half-removed checkpoint never has a final name."""
        hidden = folder.rename(self.path / f"{_TEMPORARY}removing-{folder.name}-{time.time_ns()}")
        shutil.rmtree(hidden, ignore_errors=True)


def open_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """The checkpoint in a folder, after comparing every file with the manifest.

    Args:
        verify: False if another rank has compared them.

    Raises:
        CheckpointError: it is missing, damaged, or not a checkpoint.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{path} is not a checkpoint (it has no {MANIFEST})")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        files, samples_seen, about = content["files"], int(content["samples_seen"]), dict(content["about"])
        if content["format"] != _FORMAT:
            raise CheckpointError(f"{path}: format {content['format']} is unknown; this version reads {_FORMAT}")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda name: fingerprint(path / name), files)) if verify else list(files.values())
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
    """message: the error of the disk. is_full: whether free space would help."""

    message: str
    is_full: bool


def _problem(work: Callable[[], None]) -> _Problem | None:
    """The error of the work; None if it succeeded."""
    try:
        work()
    except OSError as error:
        return _Problem(error.strerror or str(error), error.errno in _FULL)
    return None


def _write(folder: Path, parts: Mapping[str, Any], files: dict[str, Any]) -> None:
    """Writes parts and notes their sizes and checksums in `files`."""
    for name, part in parts.items():
        with (folder / f"{name}.pt").open("wb") as stream:
            files[f"{name}.pt"] = save_part(part, stream)


def _verifies(path: Path) -> bool:
    try:
        open_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _with_overhead(num_bytes: int) -> int:
    """Bytes on the disk of a checkpoint whose tensors have `num_bytes`."""
    return int(_SPACE_FACTOR * num_bytes) + _SPACE_EXTRA


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _tensor_bytes(part: Any) -> int:
    if isinstance(part, torch.Tensor):
        return part.nbytes
    if isinstance(part, Mapping):
        return sum(_tensor_bytes(value) for value in part.values())
    if isinstance(part, list | tuple):
        return sum(_tensor_bytes(value) for value in part)
    return 0
