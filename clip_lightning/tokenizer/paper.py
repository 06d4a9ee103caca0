"""CLIP's own byte-level BPE of 49,408 ids (Radford et al. 2021, section 2.4)."""

import gzip
import html
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import ftfy
import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from clip_lightning.config.schema import TextConfig, TokenizerConfig
from clip_lightning.errors import UserError
from clip_lightning.tokenizer.bpe import BpeEncoder
from clip_lightning.tokenizer.tokenizer import Tokenizer

MERGES_NAME = "merges.txt.gz"
_NUM_MERGES = 48894
_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def clean_paper(text: str) -> str:
    """Repaired Unicode, HTML entities read twice, single spaces, lower case (OpenAI's CLIP, simple_tokenizer.py)."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def build_paper(text: TextConfig) -> Tokenizer:
    """CLIP's byte-level BPE of 49,408 ids (paper section 2.4): bytes, bytes that end a word, merges, start, end."""
    words, merges = vocabulary(text.tokenizer)
    backend = tokenizers.Tokenizer(models.BPE(vocab=words, merges=merges, end_of_word_suffix="</w>"))
    split = pre_tokenizers.Split(Regex(_PATTERN), behavior="removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return Tokenizer(
        BpeEncoder(backend, clean_paper),
        vocab_size=len(words) + 2,
        prefix=[len(words)],
        suffix=[len(words) + 1],
        pad_id=0,
        context_length=text.context_length,
        pad_to_context=text.pad_to_context,
    )


def vocabulary(config: TokenizerConfig) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids by piece of text, without special tokens, and the merges in order. Raises UserError without the file."""
    merges = _read_merges(config)
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *(first + second for first, second in merges)]
    return {word: k for k, word in enumerate(words)}, merges


def save_paper(text: TextConfig, folder: Path) -> None:
    """Copies the merges file to `folder`."""
    source = _merges_file(text.tokenizer)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise _unreadable(source, error) from error
    name = MERGES_NAME if source.suffix == ".gz" else MERGES_NAME.removesuffix(".gz")
    (folder / name).write_bytes(content)


def _merges_file(config: TokenizerConfig) -> Path:
    """The file that the config names, or CLIP's own in the package data of open_clip_torch."""
    if config.path is not None:
        return Path(config.path)
    try:
        return Path(str(distribution("open_clip_torch").locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz")))
    except PackageNotFoundError as error:
        raise UserError(
            "model.text.tokenizer.kind=paper reads its merges from the package open_clip_torch, which is not "
            "installed; run make setup, or set model.text.tokenizer.path to bpe_simple_vocab_16e6.txt.gz"
        ) from error


def _read_merges(config: TokenizerConfig) -> list[tuple[str, str]]:
    """The merges in order: the file has one header line, then one pair per line."""
    path = _merges_file(config)
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    pairs = [tuple(line.split()) for line in lines[1 : _NUM_MERGES + 1] if line]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise UserError(
            f"model.text.tokenizer.path={path} is not a merges file: after the header, a line holds two pieces"
        )
    return [(first, second) for first, second in pairs]


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"model.text.tokenizer.path={path} cannot be read as a merges file ({error}); "
        "set it to CLIP's bpe_simple_vocab_16e6.txt.gz, or leave it out"
    )


def _byte_letters() -> list[str]:
    """A visible character for each of the 256 bytes, in the order of GPT-2's vocabulary: printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    num_others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(num_others)]
