"""Features of an image tower, kept on disk under a hash of everything that decides them.

A file is named by the hash of: the tower's weights and architecture, the transform, every image's bytes, the
precision, the device, and the versions of what decodes and computes. Change any of them, and other features are looked
for. A file is verified when it is read: a damaged one is made again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clip_lightning.data.images.decode import SHORTEST, Resize, decode_eval
from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.distributed import exchange, rank_and_world
from clip_lightning.evaluation.encode import ImageReader, shared_rows
from clip_lightning.evaluation.inference import inference, refuse_broken
from clip_lightning.evaluation.weights_hash import weights_hash
from clip_lightning.model.clip import CLIP
from clip_lightning.model.vision import VisionTower

PARTS = ("pooled", "projected")
_VERSION = 1  # goes up with every change of how features are made
_PACKAGES = ("torch", "timm", "simplejpeg", "pillow")


class Images(Protocol):
    """Images by number: `labelled.LabelledImages`, `tasks.ZeroShotTask`, `retrieval_tasks.RetrievalTask`."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def read(self) -> Callable[[int], bytes | np.ndarray]:
        """Image k, encoded or uint8 [H, W, 3]."""


@dataclass(frozen=True)
class Description:
    """Everything that decides features; each field is text.

    Attributes:
        weights: hash of the tower's state.
        architecture: of the tower, as its config writes it.
        transform: image size, resize, mean and standard deviation.
        images: hash of every image's bytes, in order.
        part: pooled (what the projection reads) or projected (what it gives, not normalised).
        precision: fp32, bf16, fp16.
        device: cpu, cuda.
        versions: of the packages that decode and compute.
    """

    weights: str
    architecture: str
    transform: str
    images: str
    part: str
    precision: str
    device: str
    versions: str

    @property
    def digest(self) -> str:
        """32 hex digits."""
        content = json.dumps([_VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


class Features(NamedTuple):
    """Features of images: float32 [n, D], and the numbers of the n images that could be read, int64 [n] in order."""

    values: np.ndarray
    kept: np.ndarray


class FeatureStore:
    """A folder of features."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: made when features are written."""
        self.folder = folder.expanduser()

    def path(self, description: Description) -> Path:
        """The file of features."""
        return self.folder / f"{description.digest}.safetensors"

    def read(self, description: Description) -> Features | None:
        """The features, None where there are none, or where the file is damaged or describes others."""
        path = self.path(description)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                found = Features(file.get_tensor("values"), file.get_tensor("kept"))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            print(f"{path} is damaged ({error}); its features are made again", flush=True)
            return None
        if metadata.get("description") != _text(description) or metadata.get("content") != _content(found):
            print(f"{path} does not verify; its features are made again", flush=True)
            return None
        return found

    def write(self, description: Description, features: Features) -> None:
        """Writes features, complete or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(description)
        temporary = path.with_suffix(".tmp")
        tensors = {"values": torch.from_numpy(features.values), "kept": torch.from_numpy(features.kept)}
        save_file(tensors, temporary, {"description": _text(description), "content": _content(features)})
        temporary.replace(path)


def image_features(
    model: CLIP,
    images: Images,
    num: int,
    device: torch.device,
    *,
    image_size: int,
    resize: Resize = SHORTEST,
    batch: int = 256,
    precision: str = "fp32",
    part: str = "pooled",
    store: FeatureStore | None = None,
    architecture: str = "",
) -> Features:
    """Features of the first `num` images, the same on every rank; from the store where it has them.

    The part `pooled` is what the projection reads: of a ViT its output before the projection, as in appendix A.3 of
    Radford et al. 2021; of the paper's ResNets what the attention pool gives, whose output layer is their projection.

    Raises: UserError when features are NaN or infinite.
    """
    assert part in PARTS
    description = None
    if store is not None:
        description = describe(model, images, num, device, image_size, resize, part, precision, architecture)
        found = store.read(description)
        if all(exchange(found is not None)):
            assert found is not None
            return found
    tower: Callable[[Tensor], Tensor] = partial(model.encode_image, normalize=False)
    if part == "pooled":
        tower = cast(VisionTower, model.vision).pooled

    def image(k: int) -> Tensor:
        return decode_eval(images.read(k), image_size, resize=resize)

    with inference(model, device, precision):
        values, kept = ImageReader(num, image, image_size, batch).encode(tower, device)
    refuse_broken(int((~values.isfinite()).any(1).sum()), num, images.name)
    features = Features(values.cpu().numpy(), kept.cpu().numpy())
    if store is not None and description is not None and rank_and_world()[0] == 0:
        store.write(description, features)
    return features


def describe(
    model: CLIP,
    images: Images,
    num: int,
    device: torch.device,
    image_size: int,
    resize: Resize,
    part: str,
    precision: str,
    architecture: str,
) -> Description:
    """What decides the features of images; every rank reads its share of them."""
    tower = model.vision
    statistics = [getattr(tower, name).flatten().tolist() for name in ("mean", "std") if hasattr(tower, name)]
    return Description(
        weights=weights_hash([tower if part == "projected" else getattr(tower, "backbone", tower)]),
        architecture=architecture,
        transform=json.dumps([image_size, *resize, statistics]),
        images=images_hash(images, num),
        part=part,
        precision=precision,
        device=device.type,
        versions=" ".join(f"{name} {version(name)}" for name in _PACKAGES),
    )


def images_hash(images: Images, num: int, batch: int = 1024) -> str:
    """SHA-256 of the bytes of images in their order, each hashed by itself; the ranks share the reading."""

    def encode(batches: Iterator[range]) -> Iterator[Tensor]:
        for chosen in batches:
            digests = [hashlib.sha256(_bytes(images.read, k)).digest() for k in chosen]
            yield torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).unflatten(0, (-1, 32))

    return hashlib.sha256(shared_rows(num, batch, encode).numpy().tobytes()).hexdigest()


def _bytes(read: Callable[[int], bytes | np.ndarray], k: int) -> bytes:
    try:
        image = read(k)
    except BadSample as bad:
        return f"unreadable: {bad.cause}".encode()
    return image if isinstance(image, bytes) else f"{image.shape}".encode() + image.tobytes()


def _text(description: Description) -> str:
    return json.dumps(asdict(description), sort_keys=True)


def _content(features: Features) -> str:
    """SHA-256 of features."""
    digest = hashlib.sha256(f"{features.values.shape} {features.values.dtype}".encode())
    digest.update(features.values.tobytes())
    digest.update(features.kept.tobytes())
    return digest.hexdigest()
