"""Labelled images to train a probe on, and to test it: by a folder's layout, or drawn scenes.

| source | layout |
|---|---|
| DIR with `train/nshards.txt`, or that folder | CLIP_benchmark's webdataset: an image and its label (.cls) |
| DIR/<class>/*.jpg, or DIR/train/<class>/*.jpg | a folder of each class; labels count the folders in ASCII order |
| DIR or FILE with .parquet | Hugging Face: a column `image`, and `label` or `cls` |
| shape, color, and the shifted sets | training scenes with a single shape |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from clip_lightning.data.images.decode import SHORTEST, Resize, decode_eval
from clip_lightning.data.layouts.file_rows import read_file
from clip_lightning.data.scenes.scenes import Scenes
from clip_lightning.data.scenes.shifted import REFERENCE, SHIFTED_TASKS, labelled_scenes
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.prompts import read_lines
from clip_lightning.evaluation.tasks import TarImages

ROLES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test", "val", "validation")}
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
DRAWN = (REFERENCE, "color", *SHIFTED_TASKS)  # tasks whose labelled images are drawn
_LABEL_COLUMNS, _IMAGE_COLUMNS = ("label", "cls", "labels", "fine_label"), ("image", "img", "jpg", "png", "webp")


@dataclass(frozen=True)
class LabelledImages:
    """Images with the number of their class.

    Attributes:
        labels: int64 [n].
        read: image k, encoded bytes or uint8 [H, W, 3]; raises BadSample; called from several threads at once.
        classnames: where the source has them; labels of two sources with names are matched by name.
    """

    name: str
    labels: np.ndarray
    read: Callable[[int], bytes | np.ndarray]
    classnames: Sequence[str] = ()

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
        return _of_parquet([path])
    if path.is_dir():
        for name in ROLES[role]:
            if (found := _of_folder(path / name)) is not None:
                return found
        if parquet := _parquet_of(path, role):
            return _of_parquet(parquet)
        if (found := _of_folder(path)) is not None:
            return found
    raise UserError(
        f"{source} has no labelled images of the {role} split: name a folder in CLIP_benchmark's layout (with "
        f"{ROLES[role][0]}/nshards.txt), a folder with a folder of images for each class, parquet with columns image "
        "and label, or shape or color for drawn scenes."
    )


def matched_labels(images: LabelledImages, classnames: Sequence[str]) -> np.ndarray:
    """The labels, int64 [n], as numbers of these class names; unchanged where either has no names.

    Raises: DataError where the images have a class that is not among the names.
    """
    if not images.classnames or not classnames or list(images.classnames) == list(classnames):
        return images.labels
    number = {name: k for k, name in enumerate(classnames)}
    if unknown := [name for name in images.classnames if name not in number]:
        raise DataError(f"{images.name} has the class '{unknown[0]}', which the training images lack; remove it.")
    return np.array([number[name] for name in images.classnames])[images.labels]


def _of_folder(folder: Path) -> LabelledImages | None:
    if (announced := folder / "nshards.txt").is_file():
        lines = read_lines(announced)
        if len(lines) != 1 or not lines[0].isdecimal():
            raise DataError(f"{announced} must hold one number, the number of tars beside it.")
        images = TarImages([folder / f"{k}.tar" for k in range(int(lines[0]))])
        return LabelledImages(str(folder), images.labels, images.read)
    classes = sorted(below.name for below in folder.iterdir() if below.is_dir()) if folder.is_dir() else []
    files = [
        (label, path)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _IMAGES
    ]
    if not files or {"train", "test"} & set(classes):
        return None
    paths = [path for _, path in files]
    labels = np.array([label for label, _ in files], dtype=np.int64)
    return LabelledImages(str(folder), labels, lambda k: read_file(paths[k]), classes)


def _parquet_of(folder: Path, role: str) -> list[Path]:
    for below in (folder, folder / "data"):
        for name in ROLES[role]:
            if found := sorted(below.glob(f"{name}*.parquet")):
                return found
    return []


def _of_parquet(files: Sequence[Path]) -> LabelledImages:
    """Rows of parquet files; the images stay on disk, and a row group is read when one of its images is."""
    names = pq.read_schema(files[0]).names
    label = next((name for name in _LABEL_COLUMNS if name in names), None)
    image = next((name for name in _IMAGE_COLUMNS if name in names), None)
    if label is None or image is None:
        raise DataError(f"{files[0]} needs a column image and a column label; it has {', '.join(names)}.")
    labels = np.concatenate([pq.read_table(file, columns=[label])[label].to_numpy() for file in files])
    if labels.dtype.kind not in "iu":
        raise DataError(f"{files[0]}: the column {label} holds {labels.dtype}, and must hold class numbers.")
    return LabelledImages(str(files[0].parent), labels.astype(np.int64), ParquetColumn(files, image).read)


class ParquetColumn:
    """Images in a column of parquet files, by row; the row groups in use are kept."""

    def __init__(self, files: Sequence[Path], column: str, most_groups: int = 4) -> None:
        """Args: most_groups: row groups that are kept in memory."""
        self._column = column
        groups = [
            (file, number, metadata.row_group(number).num_rows)
            for file in files
            for metadata in [pq.read_metadata(file)]
            for number in range(metadata.num_row_groups)
        ]
        self._groups = [(file, number) for file, number, _ in groups]
        self._ends = np.cumsum([rows for *_, rows in groups])
        self._values = lru_cache(most_groups)(self._read_group)

    def read(self, k: int) -> bytes:
        """The encoded image of row k."""
        group = int(np.searchsorted(self._ends, k, side="right"))
        value = self._values(group)[k - (int(self._ends[group - 1]) if group else 0)].as_py()
        content: bytes = value["bytes"] if isinstance(value, dict) else value
        return content

    def _read_group(self, group: int) -> pa.ChunkedArray:
        file, number = self._groups[group]
        return pq.ParquetFile(file).read_row_group(number, columns=[self._column], use_threads=False)[self._column]
