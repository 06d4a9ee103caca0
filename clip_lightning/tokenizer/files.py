"""The tokenizer's files in a run's directory: written at the first start, verified and read at every later use.

The folder holds the tokenizer's own files, the configuration of a Hugging Face encoder (`encoder/config.json`), and
`checksums.json` with the SHA-256 of each. A run therefore needs neither the hub nor the original folder again.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from clip_lightning.config.schema import TextConfig
from clip_lightning.errors import UserError
from clip_lightning.tokenizer.hugging_face import save_encoder_config, save_hugging_face
from clip_lightning.tokenizer.paper import MERGES_NAME, save_paper
from clip_lightning.tokenizer.trained import FILE_NAME, save_trained

CHECKSUMS = "checksums.json"
_ENCODER = "encoder"


def is_saved(folder: Path) -> bool:
    """Whether a run has written its tokenizer here. Runs of older versions have no checksums."""
    return (folder / CHECKSUMS).is_file() or (folder / FILE_NAME).is_file()


def save(text: TextConfig, folder: Path, captions: Iterable[str] | None, trained_file: Path | None = None) -> None:
    """Writes the files of a text tower to `folder`: complete or not at all, so that an interrupted start repeats it.

    Args:
        text: names the tokenizer and the encoder.
        captions: what a tokenizer of `kind=trained` is trained on.
        trained_file: one that is copied instead, such as a teacher's.

    Raises:
        UserError: the files cannot be had.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        if trained_file is not None:
            shutil.copyfile(trained_file, temporary / FILE_NAME)
        elif text.tokenizer.kind == "trained":
            save_trained(text, temporary, captions)
        elif text.tokenizer.kind == "paper":
            save_paper(text, temporary)
        else:
            save_hugging_face(text, temporary)
        if text.huggingface is not None and text._target_ is None and "model_type" not in text.config:
            save_encoder_config(text, temporary / _ENCODER)
        (temporary / CHECKSUMS).write_text(json.dumps(_checksums(temporary), indent=1) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        with suppress(OSError):
            folder.rmdir()  # an empty one
        try:
            temporary.rename(folder)
        except OSError:
            if not is_saved(folder):  # otherwise another process of this run was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def saved_text(text: TextConfig, folder: Path) -> TextConfig:
    """The same config, reading tokenizer and encoder configuration from the run's folder; unchanged without one.

    Raises:
        UserError: a file was changed, removed or added since the run began.
    """
    if not is_saved(folder):
        return text
    verify(folder)
    path = text.tokenizer.path
    if text.tokenizer.kind == "paper":
        path = str(next((file for file in folder.glob(f"{MERGES_NAME.removesuffix('.gz')}*")), path))
    elif text.tokenizer.kind == "hub":
        path = str(folder)
    encoder = folder / _ENCODER
    # The folder has no weights: those that a first start takes from `huggingface` still come from there.
    huggingface = str(encoder) if encoder.is_dir() and text.pretrained is not True else text.huggingface
    return replace(text, tokenizer=replace(text.tokenizer, path=path), huggingface=huggingface)


def verify(folder: Path) -> None:
    """Compares the files with their checksums. Raises UserError where they differ."""
    listed = folder / CHECKSUMS
    if not listed.is_file():
        return
    expected, found = json.loads(listed.read_text(encoding="utf-8")), _checksums(folder)
    if changed := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise UserError(
            f"{folder / changed[0]} differs from what the run began with; put the original file back, or start over "
            "with fresh=true"
        )


def checksum(folder: Path) -> str:
    """One SHA-256 of all files of a saved tokenizer, in hexadecimal."""
    return hashlib.sha256(json.dumps(_checksums(folder), sort_keys=True).encode()).hexdigest()


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 by path below the folder."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != CHECKSUMS and not file.name.startswith(".")
    }
