"""Labelled images to train a probe on, and to test it: by a folder's layout, or drawn scenes.

| source | layout |
|---|---|
| DIR with `train/nshards.txt`, or that folder | CLIP_benchmark's webdataset: an image and its label (.cls) |
| DIR/<class>/*.jpg, or DIR/train/<class>/*.jpg | a folder of each class; labels count the sorted folders |
| DIR or FILE with .parquet | Hugging Face: a column `image`, and `label` or `cls` |
| shape, color, and the shifted sets | training scenes with a single shape |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from clip_lightning.data.images.decode import SHORTEST, Resize, decode_eval
from clip_lightning.data.scenes.scenes import Scenes
from clip_lightning.data.scenes.shifted import REFERENCE, SHIFTED_TASKS, labelled_scenes
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.suite.loaders.files import folders
from clip_lightning.evaluation.suite.loaders.found import Found, index_of
from clip_lightning.evaluation.suite.loaders.tables import parquet
from clip_lightning.evaluation.suite.loaders.tars import TarImages, shards_of

ROLES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test", "val", "validation")}
DRAWN = (REFERENCE, "color", *SHIFTED_TASKS)  # tasks whose labelled images are drawn


@dataclass(frozen=True)
class LabelledImages:
    """Images with the number of their class.

    Attributes:
        labels: int64 [n].
        read: image k, encoded bytes or uint8 [H, W, 3]; raises BadSample; called from several threads at once.
        classnames: where the source has them; labels of two sources with names are matched by name.
        split: which part of the data set, for records.
    """

    name: str
    labels: np.ndarray
    read: Callable[[int], bytes | np.ndarray]
    classnames: Sequence[str] = ()
    split: str = "test"

    def image(self, k: int, size: int, resize: Resize = SHORTEST) -> Tensor:
        """Image k as uint8 [3, size, size]. Raises BadSample where it cannot be read."""
        return decode_eval(self.read(k), size, resize=resize)


def labelled_images(source: str, role: str = "train", num_scenes: int = 8000) -> LabelledImages:
    """The labelled images of a source.

    Args:
        source: a folder, a parquet file, or the name of a drawn task.
        role: train, validation or test: which of a folder's splits is read.
        num_scenes: how many scenes are drawn.
    Raises: UserError: there are none, or they cannot be read.
    """
    part = REFERENCE if source in SHIFTED_TASKS else source
    if part in DRAWN:
        ids, labels = labelled_scenes(part, num_scenes)
        scenes = Scenes()
        return LabelledImages(source, labels, lambda k: scenes.read(ids[k]).image)
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".parquet":
        return _named(path.parent, parquet(path.parent, None, patterns=[path.name]))
    for folder in [*(path / name for name in ROLES[role]), path]:
        if (folder / "nshards.txt").is_file():
            images = TarImages(shards_of(folder))
            return LabelledImages(str(folder), images.labels, images.read)
    patterns = [f"{below}{name}*.parquet" for below in ("", "data/") for name in ROLES[role]]
    if any(True for pattern in patterns for _ in path.glob(pattern)):
        return _named(path, parquet(path, None, patterns=patterns))
    for folder in [*(path / name for name in ROLES[role]), path]:
        classes = {below.name for below in folder.iterdir() if below.is_dir()} if folder.is_dir() else set()
        if classes and not {"train", "test"} & classes:
            return _named(folder, folders(folder, None))
    raise UserError(
        f"{source} has no labelled images of the {role} split: name a folder in CLIP_benchmark's layout (with "
        f"{ROLES[role][0]}/nshards.txt), a folder with a folder of images for each class, parquet with columns image "
        "and label, or shape or color for drawn scenes."
    )


def matched_labels(images: LabelledImages, classnames: Sequence[str]) -> np.ndarray:
    """The labels, int64 [n], as numbers of these class names; unchanged where either has no names.

    Raises: DataError where the images have a class that is not among the names.
    """
    if not images.classnames or not classnames:
        return images.labels
    return index_of(classnames, images.classnames, f"{images.name}: the class")[images.labels]


def _named(path: Path, found: Found) -> LabelledImages:
    if found.labels.ndim != 1:
        raise DataError(f"{path} has images of several classes, and a probe needs one class for each image.")
    return LabelledImages(str(path), found.labels, found.read, found.keys)
