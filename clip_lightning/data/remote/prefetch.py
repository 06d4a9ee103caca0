"""Downloads the shards of remote data before they are needed, in a process beside the training loop.

It is a process and not threads, so that the training process forks its loader workers without a thread or a lock of
ours. It fetches up to the end of the window after the one that is being read, so that a cache must hold two windows.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from clip_lightning.child_process import begin_worker
from clip_lightning.data.layouts.layout import Layout
from clip_lightning.data.order.order import TrainingOrder

_FORK = multiprocessing.get_context("fork")
_LOOK = 0.05  # seconds between looks at how far the run is


class Prefetcher:
    """While entered, fetches what the order will need; does nothing for data that is not remote."""

    def __init__(self, layout: Layout, order: TrainingOrder, threads: int) -> None:
        """Args: threads: shards fetched at a time."""
        self.layout, self.order = layout, order
        self._num_threads = threads if layout.remote else 0
        self._process: multiprocessing.process.BaseProcess | None = None
        self._position = _FORK.RawValue("q", 0)

    def __enter__(self) -> Self:
        return self

    def reached(self, position: int) -> None:
        """Reports the position of the run; the first call starts the process there."""
        self._position.value = position
        if self._num_threads and self._process is None:
            shards = self.order.shards_from(position)
            work = _Work(self.layout, shards, self._position)
            self._process = _FORK.Process(target=work.run, args=(self._num_threads, os.getpid()), daemon=True)
            self._process.start()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()  # the kernel frees its locks, and what it has half downloaded is deleted by the next
            self._process.join()
            self._process.close()
            self._process = None


class _Work:
    """What the process does: threads that each fetch the next shard."""

    def __init__(self, layout: Layout, shards: Iterator[tuple[int, int]], position: Any) -> None:
        self.layout, self.shards, self.position = layout, shards, position
        self._turn = threading.Lock()
        self._windows: list[int] = []  # positions where the windows so far begin

    def run(self, num_threads: int, parent: int) -> None:
        """Fetches until the process is killed."""
        begin_worker(parent)
        threads = [threading.Thread(target=self._fetch, daemon=True) for _ in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _fetch(self) -> None:
        while True:
            self.layout.prefetch(self._next())

    def _next(self) -> int:
        """The next shard to fetch, once the window before its own is reached."""
        with self._turn:
            begin, shard = next(self.shards)
            if not self._windows or self._windows[-1] != begin:
                self._windows.append(begin)
            before = self._windows[-2] if len(self._windows) > 1 else begin
            while self.position.value < before:
                time.sleep(_LOOK)
            return shard
