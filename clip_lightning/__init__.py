"""Contrastive image-text pre-training and its scaling studies.

The names below are imported when they are first used: this package alone imports nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "ClipModule": "clip_lightning.training.clip_module",
    "ContrastiveDataModule": "clip_lightning.data.datamodule",
    "embed_images": "clip_lightning.training.embedding",
    "embed_images_to": "clip_lightning.training.embedding",
    "embed_texts": "clip_lightning.training.embedding",
    "embed_texts_to": "clip_lightning.training.embedding",
    "load": "clip_lightning.training.embedding",
    "load_config": "clip_lightning.config.library",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'clip_lightning' has no attribute {name!r}; it has {', '.join(_MODULES)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
