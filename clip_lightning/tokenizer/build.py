"""The tokenizer that a config names, or that a run has saved."""

from collections.abc import Iterable
from pathlib import Path

from clip_lightning.config.schema import TextConfig
from clip_lightning.errors import UserError
from clip_lightning.tokenizer import files
from clip_lightning.tokenizer.hugging_face import build_hugging_face
from clip_lightning.tokenizer.paper import build_paper
from clip_lightning.tokenizer.tokenizer import Tokenizer
from clip_lightning.tokenizer.trained import build_trained


def build_tokenizer(text: TextConfig, folder: Path | None, captions: Iterable[str] | None) -> Tokenizer:
    """The tokenizer of a text tower.

    Args:
        text: its `tokenizer`, context length and padding are read.
        folder: a run's own folder: read where it exists, otherwise written; None: nothing is kept.
        captions: what a tokenizer of `kind=trained` is trained on where the folder has none.

    Raises:
        UserError: the tokenizer cannot be had, its saved files have changed, or it has more ids than the encoder's
            embedding has rows.
    """
    if folder is not None:
        if not files.is_saved(folder):
            files.save(text, folder, captions)
        text = files.saved_text(text, folder)
    kind = text.tokenizer.kind
    if kind == "trained":
        tokenizer = build_trained(text, folder, captions)
    else:
        tokenizer = {"paper": build_paper, "hub": build_hugging_face}[kind](text)
    if tokenizer.vocab_size > text.tokenizer.vocab_size:
        raise UserError(
            f"model.text.tokenizer.vocab_size={text.tokenizer.vocab_size} is less than the {tokenizer.vocab_size} ids "
            f"of the {kind} tokenizer; set it and the encoder's vocab_size to at least {tokenizer.vocab_size}"
        )
    return tokenizer


def load_tokenizer(text: TextConfig, folder: Path) -> Tokenizer:
    """The tokenizer of a run, which is only read. Raises UserError as `build_tokenizer`."""
    return build_tokenizer(text, folder if files.is_saved(folder) else None, None)
