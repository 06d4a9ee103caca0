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

from clip_lightning.config.schema import VisionConfig
from clip_lightning.data.images.decode import Resize, decode_eval
from clip_lightning.model.clip import CLIP
from clip_lightning.tokenizer import Tokenizer
from clip_lightning.training.any_model import open_model


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
    """The model of a run, or of another library.

    Args:
        run: the run's directory; or a source as `model.pretrained` takes it: a file, a folder, hf-hub:NAME,
            openai:ViT-B/32, open_clip:ViT-B-32/laion2b_s34b_b79k.
        checkpoint: of a run: last, or the name or path of one.
        weights: of a run: raw, or ema: the running average of weights where the run keeps one.
        allow_target: import paths in the run's config that may be imported and called.

    Raises:
        UserError, CheckpointError: there is no model, or it cannot be built.
    """
    opened = open_model(run, checkpoint=checkpoint, weights=weights, allow_target=allow_target)
    return LoadedModel(opened.model.to(device), opened.tokenizer, transform_of(opened.config.vision))


def transform_of(vision: VisionConfig) -> Callable[[Any], Tensor]:
    """The transform of images in use of a tower."""
    return partial(decode_eval, size=vision.image_size, resize=Resize(vision.resize, vision.interpolation))


def loaded_from(module: Any, data: Any) -> LoadedModel:
    """The model that a ClipModule has trained on a ContrastiveDataModule, in evaluation mode."""
    return LoadedModel(module.model.eval(), data.tokenizer, transform_of(module.config.model.vision))


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
