"""Locked towers (LiT, arXiv 2111.07991): features of a frozen tower are kept instead of computed again.

Inside a step: the second pass of cached gradients reads the features of the first. Over the run, with
`cluster.cache_locked`: one row per sample in a sparse file of the run's directory, float32 and therefore exact. A row
is used only for the bytes that it was computed from, which its checksum covers: another caption or crop of the sample,
or a row that was only partly written, is computed again.

Shapes: b samples, W width of the features of a tower's locked part.
"""

import hashlib
import os
import shutil
import socket
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip_lightning.data.batches import Batch
from clip_lightning.errors import UserError
from clip_lightning.model.clip import CLIP
from clip_lightning.training.step_context import CurrentStep

Rows = npt.NDArray[np.int64]


class LockedTowers:
    """The locked towers of a model, each called through a `LockedTower`; empty where none is locked."""

    def __init__(self, model: CLIP, step: CurrentStep) -> None:
        named: dict[str, Any] = {"vision": model.vision, "text": model.text}
        self._modules = {name: tower for name, tower in named.items() if tower.locked}
        self._towers = {
            name: LockedTower(tower, step, column=1 + list(named).index(name)) for name, tower in self._modules.items()
        }
        self._is_stored = False

    def keep_in(self, folder: Path, num_ids: int) -> None:
        """Keeps features over the run. Raises: UserError where the disk has no room for those of `num_ids` samples."""
        self._is_stored = True
        for name, tower in self._towers.items():
            # Nodes may not see each other's writes to one page: a file for each node.
            file = folder / f"{name}-{socket.gethostname()}.features"
            tower.store = FeatureStore(file, num_ids, self._modules[name].width)

    def samples(self, batch: Batch) -> Tensor:
        """The id, and hashes of image and text where they are needed: int64 [b, 3], of a batch on the CPU."""
        hashes = torch.zeros(len(batch.sample_ids), 2, dtype=torch.int64)
        if self._is_stored and "vision" in self._towers:
            hashes[:, 0] = content_hashes(batch.images)
        if self._is_stored and "text" in self._towers:
            hashes[:, 1] = content_hashes(batch.tokens, batch.lengths)
        return torch.cat([batch.sample_ids[:, None], hashes], dim=1)

    def begin_step(self) -> None:
        """Drops what an earlier step, or an attempt that did not fit into memory, has kept."""
        for tower in self._towers.values():
            tower.begin_step()


class LockedTower:
    """Called in place of the locked part of a tower; outside of training steps it only computes.

    Attributes:
        store: rows kept over the run, or None.
    """

    def __init__(self, tower: Any, step: CurrentStep, column: int) -> None:
        """Args: column: of `StepContext.samples`, where the hashes of what the tower reads are."""
        self.store: FeatureStore | None = None
        self._pooled = tower.pooled
        self._step, self._column = step, column
        self._of_step: deque[Tensor] = deque()
        tower.pooled = self

    def begin_step(self) -> None:
        """Drops the features of the step before."""
        self._of_step.clear()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The features [b, W] before the projection."""
        samples = self._step.context.samples if self._step.context is not None else None
        if samples is None:
            return self._pooled(*inputs)
        if torch.is_grad_enabled() and self._of_step:
            return self._of_step.popleft()
        if self.store is None:
            pooled = self._pooled(*inputs)
        else:
            pooled = self._stored(self.store, samples[:, 0], samples[:, self._column], inputs)
        if not torch.is_grad_enabled():  # the first pass of cached gradients
            self._of_step.append(pooled)
        return pooled

    def _stored(self, store: "FeatureStore", ids: Tensor, contents: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        """Rows of the file; if one is missing, all are computed, so that the shapes never change."""
        rows, found = store.read(ids, contents)
        if not found.all():
            computed = self._pooled(*inputs).detach().float().cpu()
            store.write(ids[~found], contents[~found], computed[~found])
            rows[~found] = computed[~found]
        return rows.to(inputs[0].device, non_blocking=True)


class FeatureStore:
    """Float32 rows in a sparse file that the processes of one node share, each with a checksum of 64 bits."""

    def __init__(self, path: Path, num_rows: int, width: int) -> None:
        """Args: num_rows: one more than the largest sample id. width: W.

        Raises: UserError where the disk has no room for all rows.
        """
        self.width, num_words = width, (width + 1) // 2 + 1
        size, path = 8 * num_words * num_rows, path.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        taken = path.stat().st_blocks * 512 if path.exists() else 0
        if (free := shutil.disk_usage(path.parent).free) < size - taken:
            raise UserError(
                f"cluster.cache_locked=true needs {size / 2**30:,.1f} GiB in {path.parent}, and "
                f"{free / 2**30:,.1f} GiB are free; write cluster.cache_locked=false, or runs=DIR on a larger disk"
            )
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(descriptor, size)
        os.close(descriptor)
        self._rows: Rows = np.memmap(path, np.int64, "r+", shape=(num_rows, num_words))

    def read(self, ids: Tensor, contents: Tensor) -> tuple[Tensor, Tensor]:
        """Rows float32 [b, W] of samples, and bool [b] whether they are there; int64 [b] ids and content hashes."""
        words = self._rows[ids.numpy()]
        found = words[:, -1] == _checksums(words[:, :-1], contents)
        values = np.ascontiguousarray(words[:, :-1]).view(np.float32)[:, : self.width]
        return torch.from_numpy(values.copy()), torch.from_numpy(found)

    def write(self, ids: Tensor, contents: Tensor, rows: Tensor) -> None:
        """Keeps float32 rows [b, W]."""
        words = np.zeros((len(rows), self._rows.shape[1]), np.int64)
        words.view(np.float32)[:, : self.width] = rows.numpy()
        words[:, -1] = _checksums(words[:, :-1], contents)
        self._rows[ids.numpy()] = words


def content_hashes(inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
    """A hash of 64 bits for the bytes of each sample: int64 [b], on the CPU.

    Args:
        inputs: images uint8 [b, ...], or tokens int64 [b, L], whose padding beyond `lengths` does not count.
    """
    if lengths is None:
        return torch.tensor([_hash(row) for row in inputs.movedim(1, -1).contiguous().numpy()])
    return torch.tensor([_hash(row[:n]) for row, n in zip(inputs.numpy(), lengths.tolist(), strict=True)])


def _checksums(rows: Rows, contents: Tensor) -> npt.NDArray[np.int64]:
    """Of rows of the file and of what they were computed from: int64 [b]."""
    return np.array([_hash(row, content) for row, content in zip(rows, contents.numpy(), strict=True)])


def _hash(*parts: npt.NDArray[Any]) -> int:
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        hashed.update(np.ascontiguousarray(part).data)
    return int.from_bytes(hashed.digest(), sys.byteorder, signed=True)
