"""Small shards, a tokenizer, and datamodules over them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clip_lightning.config.schema import AugmentConfig, DataConfig, TextConfig, TokenizerConfig, ValidationConfig
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.tokenizer import Tokenizer, build_tokenizer
from tests.support.small_data import pairs, write_tar


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Five tars of 7, 12, 1, 30 and 9 samples."""
    first = 0
    for number, count in enumerate((7, 12, 1, 30, 9)):
        write_tar(tmp_path / "shards" / f"{number:05d}.tar", pairs(first, count))
        first += count
    return tmp_path / "shards"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    text = TextConfig(name="text", context_length=16, tokenizer=TokenizerConfig(kind="trained", vocab_size=300))
    return build_tokenizer(text, None, ["picture number 0123456789", "a small photo"])


@pytest.fixture
def module(tokenizer: Tokenizer) -> Callable[..., ContrastiveDataModule]:
    """Makes a datamodule of a folder: 16-pixel images, crop and flip on, no validation unless asked for."""

    def make(path: Path | None, *, kind: str = "webdataset", **changes: object) -> ContrastiveDataModule:
        config = DataConfig(
            name="test",
            kind=kind,
            path=None if path is None else str(path),
            augment=AugmentConfig(crop_scale=[0.5, 1.0], flip=0.5),
            validation=ValidationConfig(num_samples=0),
        )
        own = {"global_batch": 8, "total_samples": 400, "workers": 0, "seed": 0, "overfit_samples": 0}
        settings = {name: changes.pop(name, value) for name, value in own.items()}
        for name, value in changes.items():
            setattr(config, name, value)
        return ContrastiveDataModule(config, image_size=16, tokenizer=tokenizer, **settings)

    return make
