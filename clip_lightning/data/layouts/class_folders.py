"""Images in one folder per class; the captions of an image are prompts filled with the name of its class.

Goyal et al. 2023 (arXiv 2212.00638) fine-tune contrastively on such prompts, with the loss of pre-training.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts.file_rows import FileRows, read_file
from clip_lightning.data.layouts.folder import OTHER_SUFFIXES, READABLE_SUFFIXES, files_below, unknown_image
from clip_lightning.data.layouts.layout import BadSample, Ids, Layout, Problem, digest
from clip_lightning.data.layouts.tar_index import decoded
from clip_lightning.errors import DataError

PLACEHOLDER = "{c}"
NAMES, TEMPLATES = "classnames.tsv", "templates.txt"
_TEMPLATE = f"a photo of a {PLACEHOLDER}."
_MOST_NAMED = 3


class ClassFolders(FileRows):
    """One row per image file. Prompts are kept once per class: 80 templates on a million images would be gigabytes."""

    def __init__(
        self, folder: Path, paths: list[str], classes: Ids, prompts: list[list[str]], problems: Sequence[Problem]
    ) -> None:
        """Args: classes: int64 [n], the class of each path. prompts: of each class."""
        super().__init__(str(folder), folder, pa.array(paths, pa.string()), None, problems)
        self.classes, self.prompts = classes, prompts

    def captions(self, sample_id: int) -> list[str]:
        """The prompts of the image's class."""
        return self.prompts[self.classes[sample_id]]

    def fingerprint(self) -> str:
        """Of the paths below the folder, their classes and the prompts."""
        prompts = ["\0".join(filled) for filled in self.prompts]
        return digest(super().fingerprint(), self.classes.tobytes(), *prompts)


def build_class_folders(config: DataConfig, path: str) -> Layout:
    """The images of DIR/CLASS/, also in folders below it; links are followed.

    The prompts are the lines of DIR/templates.txt, in which {c} is the place of the name; without the file they are "a
    photo of a {c}.". The name is that of the folder with spaces for underscores, or the one that DIR/classnames.tsv
    gives it (lines of folder, tab, name).

    Raises: DataError: no such folder, no image, a template without {c}, or a name for a folder that does not exist.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise DataError(f"data.path={path} is not a folder. {config.how_to_get}".strip())
    classes = [one.name for one in sorted(folder.iterdir()) if one.is_dir() and not one.name.startswith(".")]
    names = _names(folder, classes)
    templates = _lines(folder / TEMPLATES) or [_TEMPLATE]
    if without := [template for template in templates if PLACEHOLDER not in template]:
        raise DataError(f"{folder / TEMPLATES}: '{without[0]}' has no {PLACEHOLDER}, the place of the class name.")
    paths: list[str] = []
    problems: list[Problem] = []
    sizes = []
    for one in classes:
        images, left = _images(folder / one, config)
        paths += [f"{one}/{image}" for image in images]
        problems += [problem._replace(shard=str(folder), name=f"{one}/{problem.name}") for problem in left]
        sizes.append(len(images))
    if not paths:
        raise DataError(
            f"data.path={path} holds no image in its {len(classes)} folders; each class needs a folder of its own with "
            f"files that end in .{' or .'.join(config.image_keys)} (data.image_keys)."
        )
    if empty := [one for one, size in zip(classes, sizes, strict=True) if not size]:
        named = ", ".join(empty[:_MOST_NAMED]) + (", ..." if len(empty) > _MOST_NAMED else "")
        raise DataError(f"data.path={path}: {len(empty)} of {len(classes)} class folders hold no image ({named}).")
    prompts = [[template.replace(PLACEHOLDER, names[one]) for template in templates] for one in classes]
    return ClassFolders(folder, paths, np.repeat(np.arange(len(classes)), sizes), prompts, problems)


def _images(folder: Path, config: DataConfig) -> tuple[list[str], list[Problem]]:
    """The images below a folder, relative to it, and images of other formats, which are left out."""
    images, left = [], []
    for name in (name for files in files_below(folder) for name in files):
        stem, _, extension = name.rpartition(".")
        if not Path(stem).name:  # hidden, or without extension
            continue
        if extension.lower() in config.image_keys:
            images.append(name)
        elif extension.lower() in READABLE_SUFFIXES | OTHER_SUFFIXES:
            left.append(unknown_image(stem, extension))
    return images, left


def _names(folder: Path, classes: list[str]) -> dict[str, str]:
    """The name of each class."""
    names = {one: one.replace("_", " ") for one in classes}
    for number, line in enumerate(_lines(folder / NAMES), start=1):
        key, tab, name = line.partition("\t")
        if not tab or not name.strip() or key not in names:
            why = f"there is no folder {key}" if tab and name.strip() else "it needs a folder, a tab and a name"
            raise DataError(f"{folder / NAMES}, line {number}: {why}.")
        names[key] = name.strip()
    return names


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty; none where it does not exist."""
    try:
        return [line.strip() for line in decoded(read_file(path)).lstrip("\ufeff").splitlines() if line.strip()]
    except BadSample:
        return []
