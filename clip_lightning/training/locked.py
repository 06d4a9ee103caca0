"""Locked towers (LiT, arXiv 2111.07991): what a frozen tower gave is kept, instead of computed again.

Inside a step: cached gradients read the features of their first pass in the second. Over the run, where
`cluster.cache_locked` asks for it: a row per sample in a sparse file of the run's directory, float32 and therefore
exact. A row is given only for the very bytes that it was computed from, which its checksum holds, so that another
caption or crop of the sample, or a row that a loss of power has torn, is computed anew.

Shapes: b samples, W width of what the locked part of a tower gives.
"""

import hashlib
import os
import shutil
import socket
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip_lightning.data.batches import Batch
from clip_lightning.errors import UserError
from clip_lightning.model.clip import CLIP

Rows = npt.NDArray[np.int64]


class LockedTowers:
    """The locked towers of a model, each behind a `LockedTower`; nothing where none is locked."""

    def __init__(self, model: CLIP) -> None:
        named: dict[str, Any] = {"vision": model.vision, "text": model.text}
        self._modules = {name: tower for name, tower in named.items() if tower.locked}
        self._towers = {name: LockedTower(tower) for name, tower in self._modules.items()}
        self._is_stored = False

    def keep_in(self, folder: Path, num_ids: int) -> None:
        """Keeps features over the run. Raises: UserError where the disk has no room for those of `num_ids` samples."""
        self._is_stored = True
        for name, tower in self._towers.items():
            # Machines may not see each other's writes into one page: a file for each.
            file = folder / f"{name}-{socket.gethostname()}.features"
            tower.store = FeatureStore(file, num_ids, self._modules[name].width)

    def samples(self, batch: Batch) -> Tensor:
        """Id, and hashes of what is read of image and text: int64 [b, 3], of a batch on the CPU."""
        hashes = torch.zeros(len(batch.sample_ids), 2, dtype=torch.int64)
        if self._is_stored and "vision" in self._towers:
            hashes[:, 0] = content_hashes(batch.images)
        if self._is_stored and "text" in self._towers:
            hashes[:, 1] = content_hashes(batch.tokens, batch.lengths)
        return torch.cat([batch.sample_ids[:, None], hashes], dim=1)

    def begin_step(self) -> None:
        """Forgets what an earlier step, or one that did not fit into memory, has kept."""
        for tower in self._towers.values():
            tower.begin_step()

    @contextmanager
    def at(self, samples: Tensor) -> Iterator[None]:
        """Inside, a forward pass of training on these rows of `samples`."""
        ids, *contents = samples.unbind(1)
        with ExitStack() as stack:
            for name, hashes in zip(("vision", "text"), contents, strict=True):
                if name in self._towers:
                    stack.enter_context(self._towers[name].at(ids, hashes))
            yield


class LockedTower:
    """Stands before the locked part of a tower; outside of `at` it only passes on.

    Attributes:
        store: rows kept over the run, or None.
    """

    def __init__(self, tower: Any) -> None:
        self.store: FeatureStore | None = None
        self._pooled = tower.pooled
        self._of_step: deque[Tensor] = deque()
        self._samples: tuple[Tensor, Tensor] | None = None
        tower.pooled = self

    def begin_step(self) -> None:
        """Forgets the step before."""
        self._of_step.clear()

    @contextmanager
    def at(self, sample_ids: Tensor, contents: Tensor) -> Iterator[None]:
        """Inside, a forward pass of training: int64 [b] ids and hashes of what the tower reads, on the CPU."""
        self._samples = sample_ids, contents
        try:
            yield
        finally:
            self._samples = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The features [b, W] before the projection."""
        if self._samples is None:
            return self._pooled(*inputs)
        if torch.is_grad_enabled() and self._of_step:
            return self._of_step.popleft()
        pooled = self._pooled(*inputs) if self.store is None else self._stored(self.store, *self._samples, inputs)
        if not torch.is_grad_enabled():  # the first pass of cached gradients
            self._of_step.append(pooled)
        return pooled

    def _stored(self, store: "FeatureStore", ids: Tensor, contents: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        """Rows of the file; where one is missing the whole forward pass, so that its shapes are always the same."""
        rows, found = store.read(ids, contents)
        if not found.all():
            computed = self._pooled(*inputs).detach().float().cpu()
            store.write(ids[~found], contents[~found], computed[~found])
            rows[~found] = computed[~found]
        return rows.to(inputs[0].device, non_blocking=True)


class FeatureStore:
    """Float32 rows in a sparse file that the processes of one machine share, each with a checksum of 64 bits."""

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
