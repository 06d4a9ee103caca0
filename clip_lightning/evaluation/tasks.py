"""Zero-shot tasks by name, and from folders in CLIP_benchmark's layout.

A task is data: class names, templates, labels, and how to read image k. A new one is an entry of `BUILDERS`. A folder
is a task named by the folder's name; its tars are read in place, by offset.
"""

import difflib
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from clip_lightning.data import scenes
from clip_lightning.data.decode import decode_eval
from clip_lightning.data.layout import BadSample
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.prompts import PLACEHOLDER, read_lines

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class ZeroShotTask:
    """Images to classify by prompts.

    Attributes:
        classnames: one name per class, in the order of the labels.
        templates: prompts in which `{c}` stands for the class; their embeddings are averaged.
        labels: int64 [n].
        read: the image k, encoded bytes or uint8 [H, W, 3]; called from several threads at once.
        split: which part of the data set this is.
        prompts: what the set of templates is called in records.
    """

    name: str
    classnames: Sequence[str]
    templates: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], bytes | np.ndarray]
    split: str = "test"
    prompts: str = "own"

    def __post_init__(self) -> None:
        problems = []
        if not len(self.classnames):
            problems.append(f"task {self.name} has no class names; a classifier needs at least one.")
        problems += [f"task {self.name}: class {k} has no name." for k, name in enumerate(self.classnames) if not name]
        if not len(self.templates):
            problems.append(f"task {self.name} has no templates; write at least one, such as 'a {PLACEHOLDER}'.")
        for template in self.templates:
            if PLACEHOLDER not in template:
                problems.append(
                    f"task {self.name}: the template '{template}' has no {PLACEHOLDER}, which the class name replaces; "
                    "every class would get the same prompt."
                )
        if not len(self.labels):
            problems.append(f"task {self.name} has no images.")
        for k in np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classnames)))[:1]:
            problems.append(
                f"task {self.name}: image {k} has label {self.labels[k]}, and labels go from 0 to "
                f"{len(self.classnames) - 1} for its {len(self.classnames)} class names."
            )
        if problems:
            raise DataError(*problems)

    @property
    def num_samples(self) -> int:
        """Number of images."""
        return len(self.labels)

    def image(self, k: int, size: int) -> Tensor:
        """Image k as uint8 [3, size, size]: short side resized, centre cropped. Raises DataError when unreadable."""
        try:
            return decode_eval(self.read(k), size)
        except BadSample as bad:
            raise DataError(
                f"task {self.name}: image {k} is damaged ({bad.cause} {bad.detail}); copy it again."
            ) from bad


def _scenes_task(name: str) -> ZeroShotTask:
    drawn = scenes.zero_shot_set(name)
    templates = [template.replace("{}", PLACEHOLDER) for template in drawn.templates]
    return ZeroShotTask(name, drawn.classnames, templates, drawn.labels, drawn.image, drawn.split, "scenes")


BUILDERS: dict[str, Callable[[], ZeroShotTask]] = {name: partial(_scenes_task, name) for name in scenes.TASKS}


def build_task(name: str) -> ZeroShotTask:
    """The registered task of this name. Raises UserError with near names."""
    if name not in BUILDERS:
        near = difflib.get_close_matches(name, BUILDERS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"registered are {', '.join(BUILDERS)}."
        raise UserError(f"eval.tasks: there is no task '{name}'; {hint}")
    return BUILDERS[name]()


def build_tasks(names: Sequence[str], folders: Sequence[str | Path] = ()) -> list[ZeroShotTask]:
    """Registered tasks and folder tasks, in this order. Raises UserError with the problems of all of them."""
    tasks: list[ZeroShotTask] = []
    problems: list[str] = []
    builders = [partial(build_task, name) for name in names] + [partial(folder_task, Path(path)) for path in folders]
    for builder in builders:
        try:
            tasks.append(builder())
        except UserError as error:
            problems += error.problems
    built = [task.name for task in tasks]
    problems += [
        f"eval: {built.count(name)} tasks are called '{name}', and their records could not be told apart; rename one."
        for name in dict.fromkeys(built)
        if built.count(name) > 1
    ]
    if problems:
        raise UserError(*problems)
    return tasks


def folder_task(path: Path) -> ZeroShotTask:
    """The task in a folder of CLIP_benchmark's webdataset layout, named by the folder's name.

    The layout: classnames.txt, zeroshot_classification_templates.txt, test/nshards.txt, and test/0.tar, test/1.tar, ...
    in which each sample is an image (.jpg, .jpeg, .png, .webp) and its label (.cls). Raises DataError.
    """
    path = path.expanduser()
    if not path.is_dir():
        raise DataError(f"eval.folders: there is no folder {path}; give a folder in CLIP_benchmark's layout.")
    files = [path / "classnames.txt", path / "zeroshot_classification_templates.txt", path / "test" / "nshards.txt"]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(*(f"eval.folders: {file} is missing; CLIP_benchmark's layout needs it." for file in missing))
    classnames, templates, num_shards = (read_lines(file) for file in files)
    if len(num_shards) != 1 or not num_shards[0].isdecimal():
        raise DataError(f"eval.folders: {files[2]} must hold one number, how many tars stand beside it.")
    shards = [path / "test" / f"{k}.tar" for k in range(int(num_shards[0]))]
    if not shards:
        raise DataError(f"eval.folders: {files[2]} says 0 shards, so that there is nothing to evaluate on.")
    images = TarImages(shards)
    return ZeroShotTask(path.resolve().name, classnames, templates, images.labels, images.read, prompts="folder")


class TarImages:
    """Labelled images in tars: where each one's bytes lie, and its label."""

    def __init__(self, shards: Sequence[Path]) -> None:
        """Reads the tars' headers and labels, not their images. Raises DataError with the problems of all tars."""
        self.shards = list(shards)
        labels: list[int] = []
        places: list[tuple[int, int, int]] = []  # shard, offset, size
        problems: list[str] = []
        for number, shard in enumerate(self.shards):
            try:
                for label, offset, size in _labelled_images(shard):
                    labels.append(label)
                    places.append((number, offset, size))
            except DataError as error:
                problems += error.problems
        if problems:
            raise DataError(*problems)
        self.labels = np.array(labels, dtype=np.int64)
        self.places = np.array(places, dtype=np.int64).reshape(-1, 3)

    def read(self, k: int) -> bytes:
        """The encoded bytes of image k."""
        number, offset, size = self.places[k].tolist()
        return _read_at(self.shards[number], offset, size)


def _labelled_images(shard: Path) -> list[tuple[int, int, int]]:
    """(label, offset, size) of the images of a tar, in its order."""
    if not shard.is_file():
        raise DataError(f"{shard} is missing; nshards.txt beside it announces it.")
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.rpartition("/")[2].partition(".")
                folder = member.name.rpartition("/")[0]
                if member.isreg():
                    samples.setdefault(f"{folder}/{key}", {})[suffix.lower()] = member
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard} is no complete uncompressed tar ({error}); copy it again.") from error
    return [_labelled_image(shard, key, members) for key, members in samples.items()]


def _labelled_image(shard: Path, key: str, members: dict[str, tarfile.TarInfo]) -> tuple[int, int, int]:
    name = key.strip("/")
    image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
    if image is None or "cls" not in members:
        lacks = "no image (.jpg, .jpeg, .png, .webp)" if image is None else "no label (.cls)"
        raise DataError(f"{shard}: the sample {name} has {lacks} beside {', '.join(sorted(members))}.")
    label = _read_at(shard, members["cls"].offset_data, members["cls"].size).strip()
    if not label.isdigit():
        raise DataError(f"{shard}: the label of the sample {name} is {label[:20]!r}, and must be a class number.")
    return int(label), image.offset_data, image.size


def _read_at(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; safe from several threads, since no file position is shared."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        content = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(content) != size:
        raise DataError(f"{path} ends within a member at byte {offset}; copy it again.")
    return content
