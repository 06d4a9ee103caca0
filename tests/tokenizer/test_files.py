"""A run keeps the files of its tokenizer: the original is not needed again, and a changed copy is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_lightning.config.schema import TextConfig, TokenizerConfig
from clip_lightning.errors import UserError
from clip_lightning.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from clip_lightning.tokenizer.files import checksum, saved_text
from clip_lightning.tokenizer.paper import _merges_file
from tests.support.small_tokenizers import CAPTIONS, save_hub_folder

CORPUS = [*CAPTIONS[:5], "<end> [SEP] &amp; caf\u00e9", "red " * 50]


def config(kind: str, source: Path | None) -> TextConfig:
    size = {"paper": 49408, "trained": 400, "hub": 400}[kind]
    tokenizer = TokenizerConfig(kind=kind, path=str(source) if source else None, vocab_size=size)
    return TextConfig(name="own", context_length=32, tokenizer=tokenizer)


def source_of(kind: str, folder: Path) -> Path | None:
    if kind == "hub":
        return save_hub_folder(folder / "original", "bert")
    return shutil.copy(_merges_file(TokenizerConfig()), folder / "original.gz") if kind == "paper" else None


def ids(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text) for text in CORPUS]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["paper", "trained", "hub"])
def test_a_saved_tokenizer_needs_no_original(kind: str, tmp_path: Path) -> None:
    source, folder = source_of(kind, tmp_path), tmp_path / "run" / "tokenizer"
    text = config(kind, source)
    first = ids(build_tokenizer(text, folder, CAPTIONS))
    if kind != "trained":
        assert first == ids(build_tokenizer(text, None, None))
    if source is not None:
        (shutil.rmtree if source.is_dir() else Path.unlink)(source)
    assert ids(load_tokenizer(text, folder)) == ids(build_tokenizer(text, folder, None)) == first
    assert [path.name for path in folder.parent.iterdir()] == ["tokenizer"]
    assert len(checksum(folder)) == 64


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda folder: (folder / "tokenizer.json").write_text(
        (folder / "tokenizer.json").read_text().replace("[UNK]", "[unk]")
    ),
    "removed": lambda folder: (folder / "tokenizer.json").unlink(),
    "added": lambda folder: (folder / "vocab.txt").write_text("a"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_saved_tokenizer_that_was_changed_is_refused(change: Callable[[Path], object], tmp_path: Path) -> None:
    text, folder = config("hub", source_of("hub", tmp_path)), tmp_path / "tokenizer"
    build_tokenizer(text, folder, None)
    change(folder)
    for build in (lambda: build_tokenizer(text, folder, None), lambda: load_tokenizer(text, folder)):
        with pytest.raises(UserError, match="fresh=true"):
            build()


def test_the_encoders_configuration_is_saved_beside_it(tmp_path: Path) -> None:
    source, folder = source_of("hub", tmp_path), tmp_path / "tokenizer"
    assert source is not None
    (source / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 32}))
    text = config("hub", source)
    text.huggingface, text.tokenizer.path = str(source), None
    first = ids(build_tokenizer(text, folder, None))
    shutil.rmtree(source)
    saved = saved_text(text, folder)
    assert json.loads((Path(str(saved.huggingface)) / "config.json").read_text())["hidden_size"] == 32
    assert ids(load_tokenizer(text, folder)) == first
    text.pretrained = True
    assert saved_text(text, folder).huggingface == str(source), "the first start reads its weights there"
