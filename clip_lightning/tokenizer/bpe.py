"""Encoding by a byte-pair encoding of the `tokenizers` library, which the paper's and the trained kind share."""

from collections.abc import Callable

import tokenizers


class BpeEncoder:
    """Cleans texts and encodes them by a `tokenizers` object without special tokens; picklable."""

    def __init__(self, backend: tokenizers.Tokenizer, clean: Callable[[str], str]) -> None:
        self._backend, self._clean = backend, clean

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens."""
        encodings = self._backend.encode_batch_fast([self._clean(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
