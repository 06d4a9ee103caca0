"""What a loader returns, and how it reads files: labels and readers, no pixels."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".ppm", ".bmp", ".gif")

Image = bytes | np.ndarray
Reader = Callable[[int], Image]


class MissingError(DataError):
    """A data set, or its images, are not on disk; the sentence says how to get them."""


@dataclass(frozen=True)
class Found:
    """A test set on disk.

    Attributes:
        labels: int64 [n] into `keys`, or bool [n, C].
        read: image k, encoded or uint8 [H, W, 3]. Raises BadSample.
        keys: identities of the classes in the order of the labels: names of folders, codes, numbers as text.
        names: class names that the data set's own files give, in the same order; empty where they give none.
        templates: prompts that the data set's folder gives; empty where it gives none.
        num_listed: images that the set's own list names, present or not.
        groups: as in `ZeroShotTask`.
        group_names: as in `ZeroShotTask`.
        allowed: as in `ZeroShotTask`.
    """

    labels: np.ndarray
    read: Reader
    keys: Sequence[str]
    names: Sequence[str] = ()
    templates: Sequence[str] = ()
    num_listed: int | None = None
    groups: np.ndarray | None = None
    group_names: Sequence[str] = ()
    allowed: np.ndarray | None = None


class Files:
    """Reads image files; what cannot be read is a bad sample, as what cannot be decoded is."""

    def __init__(self, paths: Sequence[Path], crop: int = 0) -> None:
        """Args.

        paths: of image k.
        crop: pixels to cut off at each side.
        """
        self.paths, self.crop = list(paths), crop

    def __call__(self, k: int) -> Image:
        """Image k, encoded. Raises BadSample."""
        try:
            content = self.paths[k].read_bytes()
        except OSError as error:
            raise BadSample("missing image", f"{self.paths[k].name}: {error.strerror}") from error
        if not content:
            raise BadSample("empty image", self.paths[k].name)
        if content[:2] in (b"P5", b"P6"):  # GTSRB's PPM, which training data never has
            return _ppm(content, self.paths[k].name)
        return _cropped(content, self.crop) if self.crop else content


def _ppm(content: bytes, name: str) -> np.ndarray:
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(content), formats=("PPM",)) as picture:
            return np.array(picture.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise exceptions of any kind on damaged bytes
        raise BadSample("damaged image", f"{name}: {error}") from error


def _cropped(content: bytes, crop: int) -> np.ndarray:
    from clip_lightning.data.images.decode import open_image, pixels_of

    return np.ascontiguousarray(pixels_of(open_image(content))[crop:-crop, crop:-crop])


class Rows:
    """Reads uint8 arrays [n, H, W] or [n, H, W, 3] that are in memory or mapped."""

    def __init__(self, images: np.ndarray) -> None:
        """Args: images: uint8 [n, H, W] or [n, H, W, 3]."""
        self.images = images

    def __call__(self, k: int) -> Image:
        """Image k, uint8 [H, W, 3]."""
        image = np.array(self.images[k])  # a copy, since torch wants arrays that can be written
        return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def present(paths: Sequence[Path]) -> np.ndarray:
    """bool [n]: which of the files exist; one listing per folder instead of a look at each file."""
    names_in.cache_clear()  # files may have come since the last call of this process
    return np.array([path.name in names_in(path.parent) for path in paths], dtype=bool)


@cache
def names_in(folder: Path) -> frozenset[str]:
    """Names of what is in a folder; none where there is no such folder. Kept until the next `present`."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except OSError:
        return frozenset()


def listing(folder: Path) -> list[Path]:
    """Image files of a folder, sorted by name; other files (README.txt, resource forks of macOS) are skipped."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    return [
        folder / name
        for name in sorted(names)
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(("._", "."))
    ]


def listed(paths: Sequence[Path], labels: Iterable[int] | np.ndarray, keys: Sequence[str], **more: object) -> Found:
    """Found of the files of a list that are present.

    Raises: MissingError where none of them is.
    """
    there, labels = present(paths), np.asarray(labels)
    if not there.any():
        example = paths[0] if paths else "none"
        raise MissingError(
            f"none of the {len(paths):,} listed images is present, such as {example}; unpack the images."
        )
    kept = [path for path, is_there in zip(paths, there, strict=True) if is_there]
    labels = labels.astype(bool) if labels.ndim == 2 else labels.astype(np.int64)
    crop = more.pop("crop", 0)
    assert isinstance(crop, int)
    return Found(labels[there], Files(kept, crop), keys, num_listed=len(paths), **more)  # type: ignore[arg-type]


def index_of(keys: Sequence[str], found: Iterable[str], what: str) -> np.ndarray:
    """int64: the position of each found key in `keys`, compared as `same` does.

    Raises: DataError with the keys that are not in the list.
    """
    positions = {same(key): k for k, key in enumerate(keys)}
    found = list(found)
    unknown = list(dict.fromkeys(key for key in found if same(key) not in positions))
    if unknown:
        shown = ", ".join(f"'{key}'" for key in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise DataError(
            f"{what} {shown} {'is' if len(unknown) == 1 else 'are'} not in the list of {len(keys)} classes; rename or "
            "remove what does not belong to the data set."
        )
    return np.array([positions[same(key)] for key in found], dtype=np.int64)


def same(key: str) -> str:
    """A key without what differs between copies of one set: case, `_`, `-`, quotes, blanks."""
    return " ".join(key.casefold().replace("_", " ").replace("-", " ").replace("'", "").split())
