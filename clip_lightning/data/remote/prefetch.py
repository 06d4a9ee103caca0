"""Brings the shards of remote data near before they are needed: threads beside the training loop.

They run to the end of the window after the one that is being read, so that a cache must hold two windows.
"""

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from clip_lightning.data.layouts.layout import Layout
from clip_lightning.data.order.order import TrainingOrder


class Prefetcher:
    """While entered, fetches what the order will need; does nothing for data that is not remote."""

    def __init__(self, layout: Layout, order: TrainingOrder, threads: int) -> None:
        """Args: threads: shards fetched at a time."""
        self.layout, self.order = layout, order
        self._num_threads = threads if layout.remote else 0
        self._threads: list[threading.Thread] = []
        self._moved = threading.Condition()
        self._position = 0
        self._stop = False
        self._windows: list[int] = []  # where the windows begin that were met so far
        self._shards: Iterator[tuple[int, int]] = iter(())

    def __enter__(self) -> Self:
        return self

    def reached(self, position: int) -> None:
        """Says how far the run is; the first call starts the threads there."""
        if not self._num_threads:
            return
        with self._moved:
            self._position = position
            self._moved.notify_all()
        if not self._threads:
            self._shards = self.order.shards_from(position)
            self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._num_threads)]
            for thread in self._threads:
                thread.start()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with self._moved:
            self._stop = True
            self._moved.notify_all()

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            self.layout.prefetch(shard)

    def _next(self) -> int | None:
        """The next shard to fetch, once the window before its own is reached; None at the end."""
        with self._moved:
            begin, shard = next(self._shards)
            if not self._windows or self._windows[-1] != begin:
                self._windows.append(begin)
            before = self._windows[-2] if len(self._windows) > 1 else begin
            self._moved.wait_for(lambda: self._stop or self._position >= before)
            return None if self._stop else shard
