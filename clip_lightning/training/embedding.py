"""A trained model for use: its features of images and texts.

Shapes: n images or texts, D width of the shared space.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_lightning.config import compose
from clip_lightning.data.images.decode import decode_eval
from clip_lightning.model.clip import CLIP
from clip_lightning.tokenizer import Tokenizer, load_tokenizer
from clip_lightning.training.saved_model import TOKENIZER, config_of_saved, find_checkpoint, load_model, refuse_targets


class LoadedModel(NamedTuple):
    """A model in evaluation mode, and what makes its inputs.

    Attributes:
        tokenizer: texts to tokens and lengths.
        transform: the bytes of an image, or its pixels uint8 [H, W, 3], to uint8 [3, S, S].
    """

    model: CLIP
    tokenizer: Tokenizer
    transform: Callable[[Any], Tensor]


def load(
    run: str | Path,
    *,
    checkpoint: str = "last",
    weights: str = "raw",
    device: str | torch.device = "cpu",
    allow_target: Sequence[str] = (),
) -> LoadedModel:
    """The model of a run.

    Args:
        run: the run's directory.
        checkpoint: last, or the name or path of one.
        weights: raw, or ema: the running average of weights where the run keeps one.
        allow_target: import paths in the run's config that may be imported and called.

    Raises:
        UserError, CheckpointError: the directory holds no run, or its model cannot be built.
    """
    path = Path(run).expanduser()
    config = compose.read(path / "config.yaml")
    refuse_targets(config, allow_target)
    config = config_of_saved(config, path)
    model = load_model(config, find_checkpoint(path, checkpoint), weights).to(device)
    tokenizer = load_tokenizer(config.model.text, path / TOKENIZER)
    return LoadedModel(model, tokenizer, partial(decode_eval, size=config.model.vision.image_size))


def loaded_from(module: Any, data: Any) -> LoadedModel:
    """The model that a ClipModule has trained on a ContrastiveDataModule, in evaluation mode."""
    size = module.config.model.vision.image_size
    return LoadedModel(module.model.eval(), data.tokenizer, partial(decode_eval, size=size))


@torch.no_grad()
def embed_images(loaded: LoadedModel, images: Iterable[Any], batch: int = 64) -> Tensor:
    """Features of length 1 of images: float32 [n, D] on the CPU.

    Args:
        images: each a path, the bytes of a file, a PIL image, or pixels uint8 [H, W, 3].
        batch: images in a forward pass.

    Raises:
        BadSample: an image cannot be decoded.
    """
    device = next(loaded.model.parameters()).device
    found = []
    for part in _batched(images, batch):
        pixels = torch.stack([loaded.transform(_content(image)) for image in part])
        found.append(loaded.model.encode_image(pixels.to(device)).cpu())
    return torch.cat(found)


@torch.no_grad()
def embed_texts(loaded: LoadedModel, texts: Iterable[str], batch: int = 256) -> Tensor:
    """Features of length 1 of texts: float32 [n, D] on the CPU.

    Args: batch: texts in a forward pass.
    """
    device = next(loaded.model.parameters()).device
    found = []
    for part in _batched(texts, batch):
        tokens, lengths, _ = loaded.tokenizer(part)
        features = loaded.model.encode_text(torch.from_numpy(tokens).to(device), torch.from_numpy(lengths).to(device))
        found.append(features.cpu())
    return torch.cat(found)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    left = iter(items)
    while part := list(islice(left, size)):
        yield part


def _content(image: Any) -> Any:
    """The bytes or pixels of an image."""
    if isinstance(image, str | Path):
        return Path(image).expanduser().read_bytes()
    if hasattr(image, "save") and hasattr(image, "convert"):  # a PIL image
        stream = io.BytesIO()
        image.convert("RGB").save(stream, format="PNG")
        return stream.getvalue()
    return image
