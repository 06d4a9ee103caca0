"""Hugging Face tokenizers, by hub name or folder."""

import html
import shutil
import socket
import string
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clip_lightning.config.schema import TextConfig
from clip_lightning.errors import UserError
from clip_lightning.tokenizer.tokenizer import Tokenizer

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_canonical(text: str) -> str:
    """No punctuation, lower case, single spaces (big_vision's SigLIP, preprocessing `canonicalize`)."""
    return " ".join(text.replace("_", " ").translate(_PUNCTUATION).lower().split())


def clean_whitespace(text: str) -> str:
    """Repaired Unicode, HTML entities read twice, single spaces (open_clip's tokenizer.py, `_clean_whitespace`)."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


_CLEAN = {"canonical": clean_canonical, "whitespace": clean_whitespace}


class HuggingFaceEncoder:
    """Texts through a Hugging Face tokenizer, without its special tokens."""

    def __init__(self, tokenizer: Any, clean: str) -> None:
        self._tokenizer, self._clean = tokenizer, clean
        # Unknown text becomes the unknown token; every other special id represents no text at all.
        self._special = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens."""
        if self._clean != "none":
            texts = [_CLEAN[self._clean](text) for text in texts]
        if not texts:
            return []
        bodies = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
        # Vocabularies of sentencepiece hold special tokens as pieces of text, which splitting alone does not exclude.
        return [[token for token in body if token not in self._special] for body in bodies["input_ids"]]


def save_hugging_face(text: TextConfig, folder: Path) -> None:
    """Writes the tokenizer to `folder` in Hugging Face's own layout."""
    _load_hugging_face(_name(text)).save_pretrained(folder)


def save_encoder_config(text: TextConfig, folder: Path) -> None:
    """Copies config.json of the encoder `model.text.huggingface` to `folder`, which must not exist.

    Inline keys are not included: they are part of the run's own config. Raises UserError where it cannot be read.
    """
    from transformers.utils import cached_file

    assert text.huggingface is not None
    if not Path(text.huggingface).is_dir():
        use_hub_cache_when_offline()
    folder.mkdir()
    try:
        shutil.copyfile(cached_file(text.huggingface, "config.json"), folder / "config.json")
    except Exception as error:  # the hub's client raises classes of several libraries
        raise UserError(
            f"model.text.huggingface={text.huggingface}: its configuration cannot be read ({error}); check the name "
            "and the network"
        ) from error


def _name(text: TextConfig) -> str:
    name = text.tokenizer.path or text.huggingface
    if name is None:
        raise UserError("model.text.tokenizer.kind=hub needs model.text.tokenizer.path: a hub name or a local folder")
    return name


def build_hugging_face(text: TextConfig) -> Tokenizer:
    """A Hugging Face tokenizer by hub name or folder, with the special tokens that it puts around a text."""
    name = _name(text)
    inner = _load_hugging_face(name)
    wrapped, body = inner("a")["input_ids"], inner("a", add_special_tokens=False)["input_ids"]
    at = next((k for k in range(len(wrapped)) if wrapped[k : k + len(body)] == body), None)
    if at is None:
        raise UserError(f"model.text.tokenizer.path={name}: its special tokens are not around the text; name another")
    pad_id = inner.pad_token_id if inner.pad_token_id is not None else inner.eos_token_id
    pad_id = pad_id if pad_id is not None else 0
    suffix = wrapped[at + len(body) :]
    if text.tokenizer.strip_separator and suffix:
        suffix = [*suffix[:-1], pad_id]
    return Tokenizer(
        HuggingFaceEncoder(inner, text.tokenizer.clean),
        vocab_size=len(inner),
        prefix=wrapped[:at],
        suffix=suffix,
        pad_id=pad_id,
        context_length=text.context_length,
        pad_to_context=text.pad_to_context,
    )


def use_hub_cache_when_offline() -> None:
    """Lets the hub's client read only its cache when the hub's name has no address: it would retry for a minute."""
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
        use_hub_cache_when_offline()
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        where = "holds no tokenizer" if Path(name).is_dir() else "is not a local folder, and the hub did not provide it"
        raise UserError(
            f"model.text.tokenizer.path={name} {where}; name another, or write model.text.tokenizer.kind=trained "
            "to train one on the run's own captions"
        ) from error
