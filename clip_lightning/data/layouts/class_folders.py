"""Images in one folder per class; the captions of an image are prompts filled with the name of its class.

Goyal et al. 2023 (arXiv 2212.00638) fine-tune contrastively on such prompts, with the loss of pre-training.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.images.headers import OTHER_SUFFIXES, READABLE_SUFFIXES
from clip_lightning.data.layouts.file_rows import FileRows, file_table, read_file
from clip_lightning.data.layouts.folder import Walk, kept_listing, unknown_image
from clip_lightning.data.layouts.layout import BadSample, Ids, Layout, digest
from clip_lightning.data.layouts.tar_index import decoded
from clip_lightning.errors import DataError

PLACEHOLDER = "{c}"
NAMES, TEMPLATES = "classnames.tsv", "templates.txt"
_TEMPLATE = f"a photo of a {PLACEHOLDER}."
_MOST_NAMED = 3


class ClassFolders(FileRows):
    """One row per image file. Prompts are kept once per class: 80 templates on a million images would be gigabytes."""

    def __init__(self, folder: Path, table: pa.Table, classes: Ids, prompts: list[list[str]]) -> None:
        """Args: table: of `file_table`. classes: int64 [n], the class of each path. prompts: of each class."""
        super().__init__(str(folder), folder, table)
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
    keys = ("classes", *classes, "", *config.image_keys)  # a link may have become a class without a change of time
    table = kept_listing(config, folder, keys, lambda walk: _list(walk, folder, classes, config))
    first_parts = pc.list_element(pc.split_pattern(table["path"], "/", max_splits=1), 0)
    of_paths = pc.index_in(first_parts, pa.array(classes, pa.string())).to_numpy().astype(np.int64)
    if not len(of_paths):
        raise DataError(
            f"data.path={path} holds no image in its {len(classes)} folders; each class needs a folder of its own with "
            f"files that end in .{' or .'.join(config.image_keys)} (data.image_keys)."
        )
    if empty := [classes[k] for k in np.flatnonzero(np.bincount(of_paths, minlength=len(classes)) == 0)]:
        named = ", ".join(empty[:_MOST_NAMED]) + (", ..." if len(empty) > _MOST_NAMED else "")
        raise DataError(f"data.path={path}: {len(empty)} of {len(classes)} class folders hold no image ({named}).")
    prompts = [[template.replace(PLACEHOLDER, names[one]) for template in templates] for one in classes]
    return ClassFolders(folder, table, of_paths, prompts)


def _list(walk: Walk, folder: Path, classes: list[str], config: DataConfig) -> pa.Table:
    """The images below each class's folder, and images of other formats, which are left out."""
    images, left = [], []
    for name in (f"{one}/{name}" for one in classes for files in walk(folder / one) for name in files):
        stem, _, extension = name.rpartition(".")
        if not stem or stem.endswith("/"):  # hidden, or without extension
            continue
        if extension.lower() in config.image_keys:
            images.append(name)
        elif extension.lower() in READABLE_SUFFIXES | OTHER_SUFFIXES:
            left.append(unknown_image(stem, extension))
    return file_table(images, left)


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
