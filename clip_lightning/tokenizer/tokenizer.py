"""The tokenizer that all kinds share: special tokens, cutting, padding. Knows no torch: batches are NumPy arrays.

Whatever the kind, the text of a special token inside a caption never becomes that token, and a text that is cut keeps
its end token.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from clip_lightning.errors import UserError

_LENGTH_MULTIPLE = 8


class TokenBatch(NamedTuple):
    """Texts as ids: `tokens` int64 [B, L], `lengths` int64 [B] of what is not padding, and how many texts were cut."""

    tokens: np.ndarray
    lengths: np.ndarray
    num_cut: int


class TextEncoder(Protocol):
    """What a kind of tokenizer implements; must be picklable, since loader processes receive a copy."""

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens and not cut."""


class Tokenizer:
    """Text to ids, with the special tokens before and after that its encoder expects.

    Attributes:
        vocab_size: ids are below this.
        context_length: largest number of tokens, special ones included.
        start_id, end_id: the first and the last token of every text; None where the kind has none.
        pad_id: fills a batch's shorter texts.
    """

    def __init__(
        self,
        encode_bodies: TextEncoder,
        *,
        vocab_size: int,
        prefix: Sequence[int],
        suffix: Sequence[int],
        pad_id: int,
        context_length: int,
        pad_to_context: bool = False,
    ) -> None:
        self._encode_bodies = encode_bodies
        self._prefix, self._suffix = list(prefix), list(suffix)
        self.vocab_size = vocab_size
        self.pad_to_context = pad_to_context
        self.start_id = prefix[0] if prefix else None
        self.end_id = suffix[-1] if suffix else None
        self.pad_id = pad_id
        self._set_context_length(context_length)

    def with_context_length(self, context_length: int) -> "Tokenizer":
        """The same tokenizer, which cuts texts (and pads them, where it does) to another length."""
        other = copy.copy(self)
        other._set_context_length(context_length)
        return other

    def encode(self, text: str) -> list[int]:
        """The ids of one text with special tokens, cut to the context with the end token kept."""
        [body] = self._encode_bodies([text])
        return self._wrap(body)

    def __call__(self, texts: Sequence[str]) -> TokenBatch:
        """The ids of a batch, padded to its longest text rounded up to a multiple of 8, or to the context."""
        bodies = self._encode_bodies(list(texts))
        rows = [self._wrap(body) for body in bodies]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        longest = -(-max(map(len, rows), default=0) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        width = self.context_length if self.pad_to_context else min(longest, self.context_length)
        tokens = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        for row, target in zip(rows, tokens, strict=True):
            target[: len(row)] = row
        return TokenBatch(tokens, lengths, sum(len(body) > self._room for body in bodies))

    def _set_context_length(self, context_length: int) -> None:
        special = len(self._prefix) + len(self._suffix)
        self.context_length, self._room = context_length, context_length - special
        if self._room < 1:
            raise UserError(
                f"context_length={context_length} has no room for a word besides the {special} special tokens; "
                f"write {special + 1} or more"
            )

    def _wrap(self, body: list[int]) -> list[int]:
        return self._prefix + body[: self._room] + self._suffix
