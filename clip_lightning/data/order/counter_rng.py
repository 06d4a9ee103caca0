"""Random numbers without a state: a hash of integers, the same on every node and in every process.

Everything random about the data (which sample, which crop, which caption) is a function of what it is for and of the
seed, epoch and sample it is for, so nothing depends on the process or on the order of calls. The mixing function
is the finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
UNIFORMS = 96  # more than a scene needs
Words = npt.NDArray[np.uint64]

# What a number is drawn for; two purposes share no draw. The values are part of every run: never reuse one (6 was
# for sorting batches by caption length).
SHARDS, WINDOW, SUBSTITUTE, AUGMENT, MIXTURE, _, RESAMPLE, HELD_OUT = range(1, 9)

_STEP, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_S27, _S30, _S31, _S11 = (np.uint64(n) for n in (27, 30, 31, 11))


def hashed(*parts: int | npt.NDArray[np.integer]) -> Words:
    """A 64-bit hash of integers >= 0, elementwise over arrays that broadcast; uint64 with at least one axis."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = _mix(state * _FIRST + np.atleast_1d(np.asarray(part)).astype(np.uint64) + _STEP)
    return state


def uniforms(*parts: int | npt.NDArray[np.integer], num: int) -> npt.NDArray[np.float64]:
    """`num` independent numbers in [0, 1) for each element of `parts`: float64 [n, num]."""
    words = hashed(*(np.atleast_1d(np.asarray(part))[:, None] for part in parts), np.arange(num)[None])
    return (words >> _S11).astype(np.float64) * 2.0**-53


def permuted(
    index: npt.NDArray[np.int64], size: npt.NDArray[np.int64], key: Words, rounds: int = 16
) -> npt.NDArray[np.int64]:
    """Where a pseudo-random permutation of 0 .. size - 1 sends `index`, without holding the permutation.

    A Feistel network on a x b >= size cells with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002, generalized-Feistel): a and b are the nearest to the root of size, so that few walk.

    Args:
        index: int64 [n], each in [0, size).
        size: int64 [n] or [1], each > 0.
        key: uint64 [n] or [1]; another key is another permutation.
    """
    size, key = np.broadcast_to(size, index.shape), np.broadcast_to(key, index.shape)
    high = np.ceil(np.sqrt(size)).astype(np.int64)
    low = -(-size // high)
    result = np.empty_like(index)
    where, current = np.arange(len(index)), index
    while len(where):
        left, right = np.divmod(current, low)
        for number in range(rounds):
            if number % 2:
                right = (right + _below(hashed(key, number, left), low)) % low
            else:
                left = (left + _below(hashed(key, number, right), high)) % high
        current = left * low + right
        inside = current < size
        result[where[inside]] = current[inside]
        outside = ~inside
        where, current, size, key = where[outside], current[outside], size[outside], key[outside]
        high, low = high[outside], low[outside]
    return result


def _below(words: Words, limit: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return (words % limit.astype(np.uint64)).astype(np.int64)


def _mix(state: Words) -> Words:
    state = (state ^ (state >> _S30)) * _FIRST
    state = (state ^ (state >> _S27)) * _SECOND
    return state ^ (state >> _S31)


class CounterRng:
    """A stream of choices, the same on every node and in every process for the same `key` and `stream`.

    Counter-based (Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), so that neighbouring
    keys are independent and none has to be skipped.
    """

    def __init__(self, key: int, stream: int) -> None:
        """Args: key: what is drawn. stream: what for (training, a task); streams never share a draw."""
        self.generator = np.random.Generator(np.random.Philox(key=np.array([key, stream], np.uint64)))
        self._uniforms = iter(self.generator.random(UNIFORMS).tolist())

    def between(self, low: float, high: float) -> float:
        """A number, uniform in [low, high)."""
        return low + (high - low) * next(self._uniforms)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return next(self._uniforms) < probability

    def index(self, n: int) -> int:
        """An integer, uniform in [0, n)."""
        return int(n * next(self._uniforms))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely."""
        return options[int(len(options) * next(self._uniforms))]
