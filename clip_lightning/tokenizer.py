"""Leaf: text to token ids. Three kinds: the paper's BPE, a Hugging Face tokenizer, one trained on the run's captions.

Whatever the kind, the text of a special token inside a caption never becomes that token, and a text that is cut keeps
its end token. Knows no torch: batches are NumPy arrays.
"""

import copy
import gzip
import html
import json
import os
import socket
import string
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import ftfy
import numpy as np
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from clip_lightning.config.schema import TextConfig, TokenizerConfig
from clip_lightning.errors import UserError

# Loader workers are processes already; threads inside them are slower, and forking after their start may deadlock.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

FILE_NAME = "tokenizer.json"
_LENGTH_MULTIPLE = 8
_NUM_PAPER_MERGES = 48894
_PAPER_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_TRAINED_SPECIALS = ("<pad>", "<start>", "<end>")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TokenBatch(NamedTuple):
    """Texts as ids: `tokens` int64 [B, L], `lengths` int64 [B] of what is not padding, and how many texts were cut."""

    tokens: np.ndarray
    lengths: np.ndarray
    num_cut: int


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
        encode_bodies: Callable[[list[str]], list[list[int]]],
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
                f"context_length={context_length} leaves no room for a word beside the {special} special tokens; "
                f"write {special + 1} or more"
            )

    def _wrap(self, body: list[int]) -> list[int]:
        return self._prefix + body[: self._room] + self._suffix


def build_tokenizer(text: TextConfig, folder: Path | None, captions: Iterable[str] | None) -> Tokenizer:
    """The tokenizer of a text tower.

    Args:
        text: its `tokenizer`, context length and padding are read.
        folder: where a trained tokenizer is kept, as tokenizer.json; loaded where it is there already.
        captions: what one is trained on otherwise.

    Raises:
        UserError: the tokenizer cannot be had, or has more ids than the encoder's embedding has rows.
    """
    builders = {"paper": _paper, "hub": _hub}
    kind = text.tokenizer.kind
    tokenizer = _trained(text, folder, captions) if kind == "trained" else builders[kind](text)
    if tokenizer.vocab_size > text.tokenizer.vocab_size:
        raise UserError(
            f"model.text.tokenizer.vocab_size={text.tokenizer.vocab_size} is less than the {tokenizer.vocab_size} ids "
            f"of the {kind} tokenizer; set it and the encoder's vocab_size to at least {tokenizer.vocab_size}"
        )
    return tokenizer


# --- the paper's BPE --------------------------------------------------------------------------------------------------


class _Bpe:
    """Cleaned texts through a `tokenizers` object that knows no special tokens; picklable."""

    def __init__(self, backend: tokenizers.Tokenizer, clean: Callable[[str], str]) -> None:
        self._backend, self._clean = backend, clean

    def __call__(self, texts: list[str]) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast([self._clean(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def clean_paper(text: str) -> str:
    """Mended Unicode, HTML entities read twice, single spaces, lower case (OpenAI's CLIP, simple_tokenizer.py)."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def _paper(text: TextConfig) -> Tokenizer:
    """CLIP's byte-level BPE of 49,408 ids (paper section 2.4): bytes, bytes that end a word, merges, start, end."""
    merges = _read_merges(text.tokenizer)
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *(first + second for first, second in merges)]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={word: k for k, word in enumerate(words)}, merges=merges, end_of_word_suffix="</w>")
    )
    split = pre_tokenizers.Split(Regex(_PAPER_PATTERN), behavior="removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return Tokenizer(
        _Bpe(backend, clean_paper),
        vocab_size=len(words) + 2,
        prefix=[len(words)],
        suffix=[len(words) + 1],
        pad_id=0,
        context_length=text.context_length,
        pad_to_context=text.pad_to_context,
    )


def _read_merges(config: TokenizerConfig) -> list[tuple[str, str]]:
    """The merges file: a head line, then a pair a line. CLIP's own stands in open_clip_torch's package data."""
    if config.path is None:
        try:
            path = Path(str(distribution("open_clip_torch").locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz")))
        except PackageNotFoundError as error:
            raise UserError(
                "model.text.tokenizer.kind=paper reads its merges from the package open_clip_torch, which is not "
                "installed; run make setup, or set model.text.tokenizer.path to bpe_simple_vocab_16e6.txt.gz"
            ) from error
    else:
        path = Path(config.path)
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(
            f"model.text.tokenizer.path={path} cannot be read as a merges file ({error}); "
            "give CLIP's bpe_simple_vocab_16e6.txt.gz or leave it out"
        ) from error
    pairs = [tuple(line.split()) for line in lines[1 : _NUM_PAPER_MERGES + 1] if line]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise UserError(f"model.text.tokenizer.path={path} is no merges file: after its head, a line holds two pieces")
    return [(first, second) for first, second in pairs]


def _byte_letters() -> list[str]:
    """A visible character for each of the 256 bytes, in the order of GPT-2's vocabulary: printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    num_others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(num_others)]


# --- trained on the run's captions ------------------------------------------------------------------------------------


def clean_trained(text: str) -> str:
    """Single spaces, lower case."""
    return " ".join(text.split()).lower()


def _trained(text: TextConfig, folder: Path | None, captions: Iterable[str] | None) -> Tokenizer:
    """A byte-level BPE from `folder`, or trained on `captions` and kept there."""
    path = folder / FILE_NAME if folder is not None else None
    if path is not None and path.is_file():
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} is no tokenizer ({error}); delete it to train one anew") from error
    elif captions is not None:
        backend = train(captions, text.tokenizer.vocab_size)
        if path is not None:
            _write_text(path, backend.to_str(pretty=True))
    else:
        raise UserError(
            f"model.text.tokenizer.kind=trained needs captions to train on, and {path or 'its folder'} is not there"
        )
    vocabulary = backend.get_vocab()
    if not set(_TRAINED_SPECIALS) <= vocabulary.keys():
        raise UserError(f"{path} was not written by this project: it lacks {', '.join(_TRAINED_SPECIALS)}")
    pad, start, end = (vocabulary[token] for token in _TRAINED_SPECIALS)
    return Tokenizer(
        _Bpe(backend, clean_trained),
        vocab_size=len(vocabulary),
        prefix=[start],
        suffix=[end],
        pad_id=pad,
        context_length=text.context_length,
        pad_to_context=text.pad_to_context,
    )


def train(captions: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE of at most `vocab_size` ids, the first three being padding, start and end.

    Raises:
        UserError: no room for the 256 bytes and the special tokens.
    """
    smallest = 256 + len(_TRAINED_SPECIALS)
    if vocab_size < smallest:
        raise UserError(
            f"model.text.tokenizer.vocab_size={vocab_size} must be {smallest} or more: bytes, special tokens"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_TRAINED_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(map(clean_trained, captions), trainer)
    # Their ids stay in the vocabulary, but no text is searched for them: "<end>" in a caption is three pieces of text.
    content = json.loads(backend.to_str())
    content["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def _write_text(path: Path, text: str) -> None:
    """Writes a file that is never seen half-written; ranks that write the same at once do no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def clean_canonical(text: str) -> str:
    """No punctuation, lower case, single spaces (big_vision's SigLIP, preprocessing `canonicalize`)."""
    return " ".join(text.replace("_", " ").translate(_PUNCTUATION).lower().split())


class _HuggingFace:
    """Texts through a Hugging Face tokenizer, without its special tokens."""

    def __init__(self, tokenizer: Any, clean: str) -> None:
        self._tokenizer, self._clean = tokenizer, clean
        # The unknown token is what unknown text becomes; every other special id stands for no text at all.
        self._special = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}

    def __call__(self, texts: list[str]) -> list[list[int]]:
        if self._clean == "canonical":
            texts = [clean_canonical(text) for text in texts]
        if not texts:
            return []
        bodies = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
        # Vocabularies of sentencepiece hold special tokens as pieces of text, which splitting alone does not keep out.
        return [[token for token in body if token not in self._special] for body in bodies["input_ids"]]


def _hub(text: TextConfig) -> Tokenizer:
    """A Hugging Face tokenizer by hub name or folder, with the special tokens that it puts around a text."""
    name = text.tokenizer.path or text.huggingface
    if name is None:
        raise UserError("model.text.tokenizer.kind=hub needs model.text.tokenizer.path: a hub name or a local folder")
    inner = _load_hugging_face(name)
    wrapped, body = inner("a")["input_ids"], inner("a", add_special_tokens=False)["input_ids"]
    at = next((k for k in range(len(wrapped)) if wrapped[k : k + len(body)] == body), None)
    if at is None:
        raise UserError(f"model.text.tokenizer.path={name}: its special tokens are not around the text; name another")
    pad_id = inner.pad_token_id if inner.pad_token_id is not None else inner.eos_token_id
    return Tokenizer(
        _HuggingFace(inner, text.tokenizer.clean),
        vocab_size=len(inner),
        prefix=wrapped[:at],
        suffix=wrapped[at + len(body) :],
        pad_id=pad_id if pad_id is not None else 0,
        context_length=text.context_length,
        pad_to_context=text.pad_to_context,
    )


def skip_the_hub_where_it_is_out_of_reach() -> None:
    """Makes the hub's client read only its cache where the hub's address has no name: it would retry for a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():  # behind a proxy names are resolved elsewhere
        return
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        constants.HF_HUB_OFFLINE = True


def _load_hugging_face(name: str) -> Any:
    from transformers import AutoTokenizer

    if not Path(name).is_dir():
        skip_the_hub_where_it_is_out_of_reach()
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        where = "holds no tokenizer" if Path(name).is_dir() else "is no local folder, and the hub did not give it"
        raise UserError(
            f"model.text.tokenizer.path={name} {where}; name another, or write model.text.tokenizer.kind=trained "
            "to train one on the run's own captions"
        ) from error
