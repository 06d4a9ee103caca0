"""Zero-shot tasks by name, and from folders in CLIP_benchmark's layout.

A task is data: class names, templates, labels, and how to read image k. A new one is an entry of `BUILDERS`. A folder
is a task named by the folder's name; its tars are read in place, by offset.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from torch import Tensor

from clip_lightning.data.images.decode import SHORTEST, Resize, decode_eval
from clip_lightning.data.layouts.layout import BadSample, Problem
from clip_lightning.data.layouts.tar_index import index_tar
from clip_lightning.data.scenes import scenes, shifted
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.prompts import PLACEHOLDER, read_lines

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp")
LABEL_KEYS = ("cls",)
MAX_SHOWN = 5


@dataclass(frozen=True)
class ZeroShotTask:
    """Images to classify by prompts.

    Attributes:
        classnames: one name per class, in the order of the labels.
        templates: prompts in which `{c}` is the placeholder of the class name; their embeddings are averaged.
        labels: int64 [n], or bool [n, C] for a set in which an image has any number of classes (VOC2007).
        read: the image k, encoded bytes or uint8 [H, W, 3]; called from several threads at once. Raises BadSample.
        split: which part of the data set this is.
        prompts: name of the set of templates in records.
        resize: how images become squares, of the model that is evaluated.
        metric: the data set's own metric, a key of `metrics.METRICS`.
        prompt_sets: further sets of templates beside `templates`, by name.
        groups: int64 [n], None without groups. For `pm`: the anchor that an image belongs to, the first image of each
            group being the anchor itself. For `worst_group_*`: the region or income class of an image.
        group_names: a name per group; empty where groups are numbers only.
        allowed: bool [C_all, C], which classes of a wider classifier count as a class of this set (ObjectNet: several
            ImageNet classes to one label); None where the classifier is made of `classnames` alone.
        images_id: identity of the images without the prompts: tasks that share it share pixels and features.
        num_expected: images that the set is known to have; None where that is unknown.
        stand_in: one sentence that says why this is not the set of the paper; empty where it is.
        names_from: where class names and templates were read from.
    """

    name: str
    classnames: Sequence[str]
    templates: Sequence[str]
    labels: np.ndarray
    read: Callable[[int], bytes | np.ndarray]
    split: str = "test"
    prompts: str = "own"
    resize: Resize = SHORTEST
    metric: str = "acc1"
    prompt_sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    groups: np.ndarray | None = None
    group_names: Sequence[str] = ()
    allowed: np.ndarray | None = None
    images_id: str = ""
    num_expected: int | None = None
    stand_in: str = ""
    names_from: str = ""

    def __post_init__(self) -> None:
        problems = []
        if not len(self.classnames):
            problems.append(f"task {self.name} has no class names; a classifier needs at least one.")
        problems += [f"task {self.name}: class {k} has no name." for k, name in enumerate(self.classnames) if not name]
        if not len(self.templates):
            problems.append(f"task {self.name} has no templates; write at least one, such as 'a {PLACEHOLDER}'.")
        for template in (*self.templates, *(text for texts in self.prompt_sets.values() for text in texts)):
            if PLACEHOLDER not in template:
                problems.append(
                    f"task {self.name}: the template '{template}' has no {PLACEHOLDER}, which the class name replaces; "
                    "every class would get the same prompt."
                )
        if not len(self.labels):
            problems.append(f"task {self.name} has no images.")
        problems += self._label_problems()
        if problems:
            raise DataError(*problems)

    def _label_problems(self) -> list[str]:
        num_classes = len(self.classnames)
        if self.labels.ndim == 2:
            if self.labels.dtype != bool or self.labels.shape[1] != num_classes:
                return [
                    f"task {self.name}: labels of several classes per image are bool [n, {num_classes}], and these are "
                    f"{self.labels.dtype} {list(self.labels.shape)}."
                ]
            return []
        return [
            f"task {self.name}: image {k} has label {self.labels[k]}, and labels go from 0 to {num_classes - 1} for "
            f"its {num_classes} class names."
            for k in np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))[:1]
        ]

    @cached_property
    def prompts_hash(self) -> str:
        """Hash of class names and templates in their order: two tasks of one name that differ in them differ here."""
        content = json.dumps([list(self.classnames), list(self.templates)])
        return hashlib.sha256(content.encode()).hexdigest()[:8]

    @property
    def repeated_names(self) -> list[tuple[str, list[int]]]:
        """Names, compared without case, that several classes have, and the labels of these."""
        labels: dict[str, list[int]] = {}
        for label, name in enumerate(self.classnames):
            labels.setdefault(" ".join(name.casefold().split()), []).append(label)
        return [(self.classnames[found[0]], found) for found in labels.values() if len(found) > 1]

    @property
    def num_samples(self) -> int:
        """Number of images."""
        return len(self.labels)

    def image(self, k: int, size: int) -> Tensor:
        """Image k as uint8 [3, size, size], resized as the model's images are. Raises DataError when unreadable."""
        try:
            return decode_eval(self.read(k), size, resize=self.resize)
        except BadSample as bad:
            raise DataError(
                f"task {self.name}: image {k} is damaged ({bad.cause} {bad.detail}); copy it again."
            ) from bad


def _scenes_task(name: str) -> ZeroShotTask:
    drawn = shifted.shifted_set(name) if name in shifted.SHIFTED_TASKS else scenes.zero_shot_set(name)
    templates = [template.replace("{}", PLACEHOLDER) for template in drawn.templates]
    return ZeroShotTask(name, drawn.classnames, templates, drawn.labels, drawn.image, drawn.split, "scenes")


BUILDERS: dict[str, Callable[[], ZeroShotTask]] = {
    name: partial(_scenes_task, name) for name in (*scenes.TASKS, *shifted.SHIFTED_TASKS)
}


def build_task(name: str) -> ZeroShotTask:
    """The registered task of this name. Raises UserError with near names."""
    if name not in BUILDERS:
        near = difflib.get_close_matches(name, BUILDERS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"registered are {', '.join(BUILDERS)}."
        raise UserError(f"eval.tasks: unknown task '{name}'; {hint}")
    return BUILDERS[name]()


def build_tasks(
    names: Sequence[str], folders: Sequence[str | Path] = (), root: str | Path | None = None
) -> list[ZeroShotTask]:
    """Registered tasks and folder tasks, in this order. Raises UserError with the problems of all of them.

    Args:
        names: of registered tasks and of data sets of the suite.
        folders: in CLIP_benchmark's layout.
        root: the folder in which the suite's data sets are; None is the folder `datasets` of the current directory.
    """
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
        f"eval: {built.count(name)} tasks are called '{name}', so their records could not be distinguished; rename one."
        for name in dict.fromkeys(built)
        if built.count(name) > 1
    ]
    if problems:
        raise UserError(*problems)
    return tasks


def warnings_of(tasks: Sequence[ZeroShotTask]) -> list[str]:
    """A sentence for each name that several classes of a task have."""
    return [
        f"warning: task {task.name}: classes {', '.join(map(str, labels))} are all called '{name}', so their images "
        "share the hits; give each class a name of its own"
        for task in tasks
        for name, labels in task.repeated_names
    ]


def folder_task(path: Path) -> ZeroShotTask:
    """The task in a folder of CLIP_benchmark's webdataset layout, named by the folder's name.

    The layout: classnames.txt, zeroshot_classification_templates.txt, test/nshards.txt, and test/0.tar, test/1.tar, ...
    in which each sample is an image (.jpg, .jpeg, .png, .webp) and its label (.cls). Raises DataError.
    """
    path = path.expanduser()
    if not path.is_dir():
        raise DataError(f"eval.folders: {path} is not a folder; name a folder in CLIP_benchmark's layout.")
    files = [path / "classnames.txt", path / "zeroshot_classification_templates.txt", path / "test" / "nshards.txt"]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(*(f"eval.folders: {file} is missing; CLIP_benchmark's layout needs it." for file in missing))
    classnames, templates, num_shards = (read_lines(file) for file in files)
    if len(num_shards) != 1 or not num_shards[0].isdecimal():
        raise DataError(f"eval.folders: {files[2]} must hold one number, the number of tars beside it.")
    shards = [path / "test" / f"{k}.tar" for k in range(int(num_shards[0]))]
    if not shards:
        raise DataError(f"eval.folders: {files[2]} announces 0 shards, so there is nothing to evaluate.")
    images = TarImages(shards)
    return ZeroShotTask(path.resolve().name, classnames, templates, images.labels, images.read, prompts="folder")


class TarImages:
    """Labelled images in tars: where each one's bytes lie, and its label."""

    def __init__(self, shards: Sequence[Path]) -> None:
        """Walks the tars' headers and reads the labels. Raises DataError with the problems of all tars."""
        self.shards = list(shards)
        problems = [
            f"{shard} is missing; nshards.txt beside it announces it." for shard in shards if not shard.is_file()
        ]
        if problems:
            raise DataError(*problems)
        labels: list[int] = []
        places: list[tuple[int, int, int]] = []  # shard, offset, size
        for number, shard in enumerate(self.shards):
            index = index_tar(shard, IMAGE_KEYS, LABEL_KEYS)
            problems += _sentences(shard, index.problems)
            for record in index.records:
                label = read_at(shard, int(record["caption_offset"]), int(record["caption_size"])).strip()
                if not label.isdigit():
                    problems.append(f"{shard}: a label (.cls) is {label[:20]!r}, and must be a class number.")
                    break
                labels.append(int(label))
                places.append((number, int(record["image_offset"]), int(record["image_size"])))
        if problems:
            raise DataError(*problems)
        self.labels = np.array(labels, dtype=np.int64)
        self.places = places

    def read(self, k: int) -> bytes:
        """The encoded bytes of image k."""
        number, offset, size = self.places[k]
        return read_at(self.shards[number], offset, size)


def _sentences(shard: Path, found: Sequence[Problem]) -> list[str]:
    """Sentences for what an index found, the first few of a tar: an evaluation skips no image."""
    sentences = []
    problems = [problem for problem in found if problem.num]
    for problem in problems[:MAX_SHOWN]:
        where = f"{shard}: the sample {problem.name}" if problem.name else f"{shard}"
        cause = problem.cause.replace("caption", "label")
        if problem.is_damage:
            sentences.append(f"{where} has a fault ({cause}); copy it again.")
        else:
            sentences.append(f"{where} has a fault ({cause}){': ' if problem.hint else ''}{problem.hint}.")
    if len(problems) > MAX_SHOWN:
        sentences.append(f"{shard} has {len(problems) - MAX_SHOWN} more such samples.")
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
