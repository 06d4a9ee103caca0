"""Small data in the layouts that users have, written for each test; the photographs are scikit-learn's two."""

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_lightning.config.schema import AugmentConfig, DataConfig, TextConfig, TokenizerConfig, ValidationConfig
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.tokenizer import Tokenizer, build_tokenizer

Members = Iterable[tuple[str, bytes]]


def jpeg(number: int, width: int = 40, height: int = 30) -> bytes:
    """A smooth picture that differs with its number."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([(x * 5 + number * 37) % 256, (y * 7 + number * 11) % 256, (x + y + number) % 256], axis=2)
    return encoded(Image.fromarray(pixels.astype(np.uint8)), "JPEG", quality=90)


def encoded(picture: Image.Image, kind: str, **settings: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **settings)
    return stream.getvalue()


def write_tar(path: Path, members: Members, kind: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(first: int, count: int) -> list[tuple[str, bytes]]:
    """Members of `count` good samples."""
    members = []
    for number in range(first, first + count):
        members += [(f"{number:05d}.jpg", jpeg(number)), (f"{number:05d}.txt", f"picture number {number}".encode())]
    return members


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
