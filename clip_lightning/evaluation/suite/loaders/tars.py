"""Test sets in CLIP_benchmark's webdataset layout: tars that are read in place, by offset."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clip_lightning.data.layouts.tar_headers import ChunkedFile, DamagedTarError, members
from clip_lightning.errors import DataError
from clip_lightning.evaluation.prompts import read_lines, rewritten
from clip_lightning.evaluation.suite.loaders.found import Found

IMAGE_KEYS = ("webp", "png", "jpg", "jpeg")  # CLIP_benchmark's order
LABEL_KEY, ARRAY_KEY = "cls", "npy"
CLASS_FILE, TEMPLATE_FILE = "classnames.txt", "zeroshot_classification_templates.txt"
MAX_SHOWN = 5

Place = tuple[int, int, int]  # shard, offset, size


class TarImages:
    """Labelled images in tars: where each one's bytes lie, its label, and its array where there is one.

    Attributes:
        labels: int64 [n]; empty for a set of several labels per image.
        arrays: of the `.npy` members, [n, m]; None where the tars have none.
    """

    def __init__(self, shards: Sequence[Path], *, multilabel: bool = False) -> None:
        """Walks the tars' headers and reads the labels. Raises DataError with the problems of all tars.

        Args:
            shards: the tars, in the order of their samples.
            multilabel: labels are the `.npy` members instead of the `.cls` ones.
        """
        self.shards = list(shards)
        problems = [
            f"{shard} is missing; nshards.txt beside it announces it." for shard in shards if not shard.is_file()
        ]
        if problems:
            raise DataError(*problems)
        labels: list[int] = []
        arrays: list[np.ndarray] = []
        self.places: list[Place] = []
        needed = ARRAY_KEY if multilabel else LABEL_KEY
        for number, shard in enumerate(self.shards):
            samples, found = _samples(shard, needed)
            problems += found
            for image, label, array in samples:
                if not multilabel:
                    text = read_at(shard, *label).strip()
                    if not text.isdigit():
                        problems.append(f"{shard}: a label (.cls) is {text[:20]!r}, and must be a class number.")
                        break
                    labels.append(int(text))
                if array is not None:
                    arrays.append(np.load(io.BytesIO(read_at(shard, *array)), allow_pickle=False).reshape(-1))
                self.places.append((number, *image))
        if problems:
            raise DataError(*problems)
        self.labels = np.array(labels, dtype=np.int64)
        self.arrays = np.stack(arrays) if arrays and len(arrays) == len(self.places) else None

    def read(self, k: int) -> bytes:
        """The encoded bytes of image k."""
        number, offset, size = self.places[k]
        return read_at(self.shards[number], offset, size)


Sample = tuple[tuple[int, int], tuple[int, int], tuple[int, int] | None]


def _samples(shard: Path, needed: str) -> tuple[list[Sample], list[str]]:
    """Places of image, label and array of each sample in the order of the images, and what is wrong with the tar.

    An evaluation skips no sample: one without an image or a label is a fault, and what an image's bytes hold is found
    when it is decoded.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
    faults: list[tuple[str, str]] = []  # where in the tar, and the cause
    file = ChunkedFile(shard)
    try:
        for name, offset, size in members(file, lambda _: None, lambda name, cause: faults.append((name, cause))):
            folder, slash, base = name.rpartition("/")
            stem, _, suffix = base.partition(".")
            kind = suffix.lower()
            if stem and kind in (*IMAGE_KEYS, LABEL_KEY, ARRAY_KEY):
                sample = found.setdefault(folder + slash + stem, {})
                kind = "image" if kind in IMAGE_KEYS else kind
                if kind in sample:
                    faults.append((name, "duplicate key"))
                sample.setdefault(kind, (offset, size))
    except DamagedTarError as damage:
        faults.append(("", damage.cause))
    finally:
        file.close()
    whole: list[Sample] = []
    for key, sample in found.items():
        if "image" not in sample:
            faults.append((f"the sample {key}", "missing image"))
        elif needed not in sample:
            faults.append((f"the sample {key}", "missing label"))
        else:
            whole.append((sample["image"], sample[needed], sample.get(ARRAY_KEY)))
    return sorted(whole), _sentences(shard, faults)


def _sentences(shard: Path, faults: Sequence[tuple[str, str]]) -> list[str]:
    """Sentences for the first few faults of a tar."""
    sentences = [
        f"{shard}{': ' if where else ''}{where} has a fault ({cause}); copy it again."
        for where, cause in faults[:MAX_SHOWN]
    ]
    if len(faults) > MAX_SHOWN:
        sentences.append(f"{shard} has {len(faults) - MAX_SHOWN} more such samples.")
    return sentences


def read_at(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; safe from several threads, since no file position is shared. Raises DataError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        content = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(content) != size:
        raise DataError(f"{path} has become shorter while it was read; copy it again.")
    return content


def wds(
    folder: Path,
    keys: Sequence[str] | None,
    *,
    column: int | None = None,
    groups: Sequence[str] = (),
    left_out: Sequence[int] = (),
) -> Found:
    """CLIP_benchmark's layout: tars below `test`, class names and templates beside it where they were written.

    Args:
        folder: of the data set.
        keys: class keys, which are the class names where the folder has none.
        column: of the `.npy` member (DataComp's metadata): the group that an image is in.
        groups: names of the groups by their number in that column.
        left_out: groups whose images count in no group (the region "Other" of FMoW).
    """
    names = read_lines(folder / CLASS_FILE) if (folder / CLASS_FILE).is_file() else []
    templates = read_lines(folder / TEMPLATE_FILE) if (folder / TEMPLATE_FILE).is_file() else []
    kind = folder / "dataset_type.txt"
    multilabel = kind.is_file() and read_lines(kind) == ["multilabel"]
    images = TarImages(shards_of(folder / "test"), multilabel=multilabel)
    labels = images.labels
    if multilabel:
        assert images.arrays is not None
        labels = images.arrays.astype(bool)
    numbers = None
    if column is not None and images.arrays is not None:
        numbers = images.arrays[:, column].astype(np.int64)
        numbers = np.where(np.isin(numbers, left_out), -1, numbers)
    return Found(
        labels,
        images.read,
        names or list(keys or ()),
        names,
        [rewritten(template) for template in templates],
        num_listed=len(labels),
        groups=numbers,
        group_names=tuple(groups),
    )


def shards_of(folder: Path) -> list[Path]:
    """The tars 0.tar, 1.tar, ... of a folder: as many as nshards.txt announces, or all where there is no such file.

    Raises: DataError.
    """
    file = folder / "nshards.txt"
    if not file.is_file():
        return sorted((path for path in folder.glob("*.tar") if path.stem.isdecimal()), key=lambda path: int(path.stem))
    lines = read_lines(file)
    if len(lines) != 1 or not lines[0].isdecimal():
        raise DataError(f"eval.folders: {file} must hold one number, the number of tars beside it.")
    if not int(lines[0]):
        raise DataError(f"eval.folders: {file} announces 0 shards, so there is nothing to evaluate.")
    return [folder / f"{k}.tar" for k in range(int(lines[0]))]
