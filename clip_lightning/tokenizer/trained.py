"""A byte-level BPE that is trained on the run's own captions."""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from clip_lightning.config.schema import TextConfig
from clip_lightning.errors import UserError
from clip_lightning.tokenizer.bpe import BpeEncoder
from clip_lightning.tokenizer.tokenizer import Tokenizer

FILE_NAME = "tokenizer.json"
_SPECIALS = ("<pad>", "<start>", "<end>")


def clean_trained(text: str) -> str:
    """Single spaces, lower case."""
    return " ".join(text.split()).lower()


def build_trained(text: TextConfig, folder: Path | None, captions: Iterable[str] | None) -> Tokenizer:
    """The BPE in `folder`, or one trained on `captions`.

    Raises:
        UserError: neither a file nor captions, or a file that is not such a tokenizer.
    """
    path = folder / FILE_NAME if folder is not None else None
    if path is not None and path.is_file():
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} is not a tokenizer ({error}); delete it to train another") from error
    elif captions is not None:
        backend = train(captions, text.tokenizer.vocab_size)
    else:
        raise UserError(
            f"model.text.tokenizer.kind=trained needs captions to train on, and {path or 'its folder'} does not exist"
        )
    vocabulary = backend.get_vocab()
    if not set(_SPECIALS) <= vocabulary.keys():
        raise UserError(f"{path} was not written by this project: it lacks {', '.join(_SPECIALS)}")
    pad, start, end = (vocabulary[token] for token in _SPECIALS)
    return Tokenizer(
        BpeEncoder(backend, clean_trained),
        vocab_size=len(vocabulary),
        prefix=[start],
        suffix=[end],
        pad_id=pad,
        context_length=text.context_length,
        pad_to_context=text.pad_to_context,
    )


def save_trained(text: TextConfig, folder: Path, captions: Iterable[str] | None) -> None:
    """Trains a BPE on `captions` and writes it to `folder`. Raises UserError without captions."""
    if captions is None:
        raise UserError(
            f"model.text.tokenizer.kind=trained needs captions to train on, and {folder / FILE_NAME} does not exist"
        )
    (folder / FILE_NAME).write_text(train(captions, text.tokenizer.vocab_size).to_str(pretty=True), encoding="utf-8")


def train(captions: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE of at most `vocab_size` ids, the first three being padding, start and end.

    Raises:
        UserError: no room for the 256 bytes and the special tokens.
    """
    smallest = 256 + len(_SPECIALS)
    if vocab_size < smallest:
        raise UserError(
            f"model.text.tokenizer.vocab_size={vocab_size} must be {smallest} or more: bytes, special tokens"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(map(clean_trained, captions), trainer)
    # Their ids stay in the vocabulary, but no text is searched for them: "<end>" in a caption is three pieces of text.
    content = json.loads(backend.to_str())
    content["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(content))
