"""Zero-shot tasks by name, and from folders in CLIP_benchmark's layout.

A task is data: class names, templates, labels, and how to read image k. Names are those of the embedded scenes and of
the data sets of the registry (`suite/sets`, a YAML file each). `python -m clip_lightning.evaluation.tasks` lists the
data sets with their status on this node. A folder is a task named by the folder's name.
"""

import argparse
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clip_lightning.data.images.resize import SHORTEST, Resize
from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.data.scenes import scenes, shifted
from clip_lightning.errors import DataError, UserError, run_command
from clip_lightning.evaluation.prompts import PLACEHOLDER, read_lines
from clip_lightning.evaluation.suite import SUITES
from clip_lightning.evaluation.suite.entry import entry_names, is_entry
from clip_lightning.evaluation.suite.loaders.tars import CLASS_FILE, TEMPLATE_FILE, wds
from clip_lightning.evaluation.suite.loaders.tars import TarImages as TarImages
from clip_lightning.evaluation.suite.names import further_prompts, imagenet_names
from clip_lightning.evaluation.suite.open import Opened, open_set, print_states, print_terms, state_of

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path("datasets")  # where data sets are looked for without eval.root
STATIC = "_static"
STATIC_TASKS = tuple(f"{name}{STATIC}" for name in ("objectnet", "imagenet_vid", "youtube_bb"))
DESCRIPTION = "List the data sets of the evaluation suites: what is on disk, and how to get the rest."


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
        allowed: bool [len(classnames), C], which class names count as one of the C labels (ObjectNet: several ImageNet
            classes to one label); None where each name is a label.
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
        num_classes = len(self.classnames) if self.allowed is None else self.allowed.shape[1]
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

    def image(self, k: int, size: int) -> "Tensor":
        """Image k as uint8 [3, size, size], resized as the model's images are. Raises DataError when unreadable."""
        from clip_lightning.data.images.decode import decode_eval  # needs torch, which listing tasks does not

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


def build_task(name: str, root: str | Path | None = None) -> ZeroShotTask:
    """The registered task, or that of a data set of the suite below `root`. Raises UserError with near names."""
    if name in BUILDERS:
        return BUILDERS[name]()
    folder = Path(ROOT if root is None else root).expanduser()
    if name in STATIC_TASKS or is_entry(name, folder):
        return suite_task(name, folder)
    raise UserError(unknown_task(name, "eval.tasks"))


def unknown_task(name: str, key: str) -> str:
    """A sentence about a name that no task has."""
    known = [*BUILDERS, *entry_names(), *STATIC_TASKS]
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}."
    return f"{key}: unknown task '{name}'; {hint}"


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
    builders = [partial(build_task, name, root) for name in names] + [
        partial(folder_task, Path(path)) for path in folders
    ]
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
    missing = [path / name for name in (CLASS_FILE, TEMPLATE_FILE, "test/nshards.txt") if not (path / name).is_file()]
    if missing:
        raise DataError(*(f"eval.folders: {file} is missing; CLIP_benchmark's layout needs it." for file in missing))
    found, name = wds(path, None), path.resolve().name
    return ZeroShotTask(
        name,
        read_lines(path / CLASS_FILE),
        found.templates or read_lines(path / TEMPLATE_FILE),
        found.labels,
        found.read,
        prompts="folder",
        images_id=f"{path.resolve()}",
        names_from=f"{path}",
    )


def suite_task(name: str, root: Path) -> ZeroShotTask:
    """The task of a data set of the registry (`suite/sets`) that is below `root`.

    `NAME_static` is the same images with ImageNet's 1,000 names, of which several count as one class of the set (the
    paper's one classifier for all shifts; Radford et al. 2021, section 3.3).

    Raises: DataError with the sentence of how to get the data set, its class names, or what is wrong with it.
    """
    is_static = name in STATIC_TASKS
    return _task_of(open_set(name.removesuffix(STATIC) if is_static else name, root), is_static)


def _task_of(opened: Opened, is_static: bool = False) -> ZeroShotTask:
    entry, found, names = opened.entry, opened.found, opened.names
    name = f"{entry.name}{STATIC}" if is_static else entry.name
    if is_static:
        if found.allowed is None:
            raise DataError(f"{name}: {opened.folder} has no map to ImageNet's classes; copy all of its metadata.")
        names = imagenet_names()
    return ZeroShotTask(
        name,
        names.classnames,
        names.templates,
        found.labels,
        found.read,
        split=opened.source.split,
        metric=entry.metric,
        prompt_sets=further_prompts(entry, names),
        groups=found.groups,
        group_names=found.group_names,
        allowed=found.allowed if is_static else None,
        images_id=f"{entry.name}/{opened.source.split}/{opened.folder.resolve()}",
        num_expected=opened.num_expected,
        stand_in=opened.stand_in,
        names_from=names.names_from,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m clip_lightning.evaluation.tasks", description=DESCRIPTION)
    parser.add_argument("--root", type=Path, default=ROOT, help=f"folder of the data sets (default: {ROOT})")
    parser.add_argument("--suite", choices=[name for name in SUITES if name != "retrieval"], help="one suite only")
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")
    arguments = parser.parse_args(argv)
    names = arguments.names or (SUITES[arguments.suite] if arguments.suite else entry_names())
    root = arguments.root.expanduser()
    unknown = [name for name in names if not is_entry(name, root)]
    if unknown:
        raise UserError(*(unknown_task(name, "NAME") for name in unknown))
    states = [state_of(name, root, _task_of) for name in names]
    print_states(states, root)
    if arguments.names:
        print_terms(states, root)
    return 0


if __name__ == "__main__":
    run_command(main)
