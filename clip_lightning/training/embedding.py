"""A trained model for use: its features of images and texts.

Shapes: n images or texts, D width of the shared space.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clip_lightning.config.schema import VisionConfig
from clip_lightning.data.images.decode import Resize, decode_eval
from clip_lightning.data.layouts.layout import BadSample, Layout, digest
from clip_lightning.model.clip import CLIP
from clip_lightning.tokenizer import Tokenizer
from clip_lightning.training.any_model import open_model
from clip_lightning.training.embed_to_disk import Inputs, Written, write


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


def embed_images(loaded: LoadedModel, images: Iterable[Any], batch: int = 64) -> Tensor:
    """Features of length 1 of images: float32 [n, D] on the CPU. `embed_images_to` writes those of many to files.

    Args:
        images: each a path, the bytes of a file, a PIL image, or pixels uint8 [H, W, 3].
        batch: images in a forward pass.

    Raises:
        BadSample: an image cannot be decoded.
    """
    found = [
        _image_features(loaded.model, [loaded.transform(_content(image)) for image in part])
        for part in _batched(images, batch)
    ]
    return torch.cat(found)


def embed_texts(loaded: LoadedModel, texts: Iterable[str], batch: int = 256) -> Tensor:
    """Features of length 1 of texts: float32 [n, D] on the CPU. `embed_texts_to` writes those of many to files.

    Args: batch: texts in a forward pass.
    """
    return torch.cat([_text_features(loaded, loaded.model, part) for part in _batched(texts, batch)])


def embed_images_to(
    folder: str | Path,
    loaded: LoadedModel,
    images: Sequence[str | Path] | Layout,
    *,
    batch: int = 64,
    threads: int | None = None,
    **options: Any,
) -> Written:
    """Writes the features of many images as files, in parts, resumable; see `embed_to_disk.write`.

    Args:
        images: paths; or data as `clip_lightning.data.layouts.layout.build_layout` opens it, whose order is kept.
        threads: that read and decode; None: one per core.
        options: rows_per_part, file_format (parquet or npy), devices, worker, report.

    Returns:
        What was written. Images that cannot be read are counted; their rows are null (parquet) or NaN (npy).
    """
    width = _text_features(loaded, loaded.model, [""]).shape[1]
    reader = ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)))
    one_at_a_time = Lock()  # layouts are made for one reader in a process

    def contents(part: list[int]) -> list[Any]:
        with one_at_a_time:
            return _contents_of(images, part)

    def decoded(content: Any) -> Tensor | None:
        try:
            return None if isinstance(content, BadSample) else loaded.transform(_content(content))
        except (BadSample, OSError):
            return None

    def features(model: CLIP, rows: range) -> Tensor:
        found = torch.full((len(rows), width), float("nan"))
        parts = list(_batched(rows, batch))
        ahead = [reader.submit(decoded, content) for content in contents(parts[0])]
        for k, part in enumerate(parts):
            waiting = ahead
            ahead = [reader.submit(decoded, content) for content in contents(parts[k + 1])] if parts[k + 1 :] else []
            pixels = {
                row: image for row, future in zip(part, waiting, strict=True) if (image := future.result()) is not None
            }
            if pixels:
                places = torch.tensor([row - rows.start for row in pixels])
                found[places] = _image_features(model, list(pixels.values()))
        return found

    def keys(first: int, last: int) -> list[str]:
        if isinstance(images, Layout):
            return [images.name_of(row).name for row in range(first, last)]
        return [str(path) for path in images[first:last]]

    if isinstance(images, Layout):
        num_rows, identity = images.num_samples, images.fingerprint()
    else:
        num_rows, identity = len(images), digest(*map(str, images))
    with reader:
        inputs = Inputs(num_rows, keys, features, digest(identity, _identity(loaded.transform)))
        return write(Path(folder).expanduser(), loaded.model, inputs, **options)


def embed_texts_to(
    folder: str | Path, loaded: LoadedModel, texts: Sequence[str], *, batch: int = 256, **options: Any
) -> Written:
    """Writes the features of many texts as files; their keys are the texts. See `embed_images_to`."""

    def features(model: CLIP, rows: range) -> Tensor:
        return torch.cat(
            [_text_features(loaded, model, [texts[row] for row in part]) for part in _batched(rows, batch)]
        )

    inputs = Inputs(len(texts), lambda first, last: list(texts[first:last]), features, digest(*texts))
    return write(Path(folder).expanduser(), loaded.model, inputs, **options)


@torch.no_grad()
def _image_features(model: CLIP, images: Sequence[Tensor]) -> Tensor:
    device = next(model.parameters()).device
    return model.encode_image(torch.stack(list(images)).to(device)).cpu()


@torch.no_grad()
def _text_features(loaded: LoadedModel, model: CLIP, texts: list[str]) -> Tensor:
    device = next(model.parameters()).device
    tokens, lengths, _ = loaded.tokenizer(texts)
    return model.encode_text(torch.from_numpy(tokens).to(device), torch.from_numpy(lengths).to(device)).cpu()


def _contents_of(images: Sequence[str | Path] | Layout, rows: list[int]) -> list[Any]:
    """Paths, or what a layout has read: bytes, pixels, or the BadSample."""
    if isinstance(images, Layout):
        return [getattr(sample, "image", sample) for sample in images.read_many(np.array(rows))]
    return [images[row] for row in rows]


def _identity(transform: Callable[[Any], Tensor]) -> str:
    """What a transform is, the same in every process: its repr may hold an address in memory."""
    if isinstance(transform, partial):
        return f"{_identity(transform.func)} {transform.args} {sorted(transform.keywords.items())}"
    return f"{transform.__module__}.{getattr(transform, '__qualname__', type(transform).__qualname__)}"


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
