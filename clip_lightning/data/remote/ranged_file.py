"""A remote shard read at offsets by ranged requests, so that indexing downloads headers and captions, not pixels."""

from clip_lightning.data.remote.cache import ShardCache
from clip_lightning.data.sources import Source

_LEAST, _MOST = 1 << 17, 1 << 23  # bytes of a request


class RangedFile:
    """A file in a store.

    A walk over a tar jumps from header to header. Where the members between them are small, a request for each costs
    more time than their bytes: requests grow while the walk stays within them or jumps no further than their size.

    Attributes:
        size: bytes.
        num_requests: ranged requests so far.
        num_bytes: bytes that they brought.
    """

    def __init__(self, source: Source, cache: ShardCache) -> None:
        """Args: cache: reads, with pauses while the store fails."""
        self.source, self.cache, self.size = source, cache, source.size
        self.num_requests = self.num_bytes = 0
        self._start, self._chunk, self._request = 0, b"", _LEAST

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer only where the file ends."""
        begin, end = offset - self._start, self._start + len(self._chunk)
        if begin < 0 or (begin + size > len(self._chunk) and end < self.size):
            is_near = begin >= 0 and offset - end <= self._request
            self._request = min(_MOST, 2 * self._request) if is_near else _LEAST
            last = max(offset, min(self.size, offset + max(size, self._request)))
            self._chunk = self.cache.content(self.source, offset, last) if last > offset else b""
            self._start, begin = offset, 0
            self.num_requests, self.num_bytes = self.num_requests + 1, self.num_bytes + len(self._chunk)
        return self._chunk[begin : begin + size]

    def close(self) -> None:
        """Does nothing: each request is on its own."""
