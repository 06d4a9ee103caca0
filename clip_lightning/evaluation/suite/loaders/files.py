"""Test sets of image files: a folder per class, or a list of files with their classes."""

import re
from collections.abc import Sequence
from pathlib import Path

from clip_lightning.errors import DataError
from clip_lightning.evaluation.prompts import read_lines
from clip_lightning.evaluation.suite.loaders.found import Found, index_of, listed, listing

SKIPPED_FOLDERS = ("__MACOSX",)


def folders(
    folder: Path, keys: Sequence[str] | None, *, images_at: str = ".", nested: bool = False, crop: int = 0
) -> Found:
    """A folder per class, matched to the list of classes by its name, never by its position.

    Args:
        folder: of the data set.
        keys: names of the class folders in the order of the labels; None where any folder is a class, by name sorted.
        images_at: the folder that holds the class folders.
        nested: whether class folders may be several levels deep (SUN397: `a/apartment_building/outdoor`).
        crop: pixels to cut off at each side.
    Raises: DataError where a folder is not in the list, or no image is found.
    """
    base = folder / images_at
    names = sorted(_class_folders(base, nested))
    if not names:
        raise DataError(f"{base} has no folders of classes; unpack the archive there.")
    keys = list(keys) if keys is not None else names
    class_labels = index_of(keys, names, f"{base}: the folder")
    paths: list[Path] = []
    labels: list[int] = []
    for name, label in zip(names, class_labels.tolist(), strict=True):
        files = listing(base / name)
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(f"{base} has {len(names)} folders of classes and no image in them; unpack the archive again.")
    found = listed(paths, labels, keys, crop=crop)
    return Found(found.labels, found.read, found.keys)  # a folder is no list: nothing announces how many there are


def _class_folders(base: Path, nested: bool) -> list[str]:
    if not base.is_dir():
        return []
    found = [path for path in base.iterdir() if path.is_dir() and not path.name.startswith(".")]
    found = [path for path in found if path.name not in SKIPPED_FOLDERS]
    if not nested:
        return [path.name for path in found]
    names: list[str] = []
    for path in found:
        inner = _class_folders(path, True)
        names += [f"{path.name}/{name}" for name in inner]
        names += [path.name] if not inner or listing(path) else []
    return names


def list_file(
    folder: Path,
    keys: Sequence[str] | None,
    *,
    list: str,
    pattern: str,
    image: str = "{image}",
    classes: str = "",
    class_names: str = "",
    order: str = "",
    crop: int = 0,
) -> Found:
    """A text file with a line per image; a header line, blank lines and repeated images are skipped.

    Args:
        folder: of the data set.
        keys: as in `folders`; None where `classes` or the list itself gives them.
        list: the file.
        pattern: regular expression of a line with the groups `image` and `class`.
        image: the image's path, of the groups of the pattern.
        classes: file with a class key per line, in the order of the labels.
        class_names: file with a class name per line, parallel to `classes`.
        order: group of the pattern whose number orders the classes (1-based ids); without it, and without `classes`,
            they are sorted.
        crop: pixels to cut off at each side.
    Raises: DataError where a line does not match or a class is not in the list.
    """
    path = folder / list
    lines = [line for line in read_lines(path) if line]
    matches = [re.match(pattern, line) for line in lines]
    if matches and matches[0] is None:
        matches, lines = matches[1:], lines[1:]
    if not matches:
        raise DataError(f"{path} lists no image; copy it again.")
    found: dict[str, re.Match[str]] = {}
    for match, line in zip(matches, lines, strict=True):
        if match is None:
            raise DataError(f"{path}: the line '{line[:60]}' is not of the data set's format; copy the file again.")
        found.setdefault(image.format(**match.groupdict()), match)
    names: Sequence[str] = ()
    if classes:
        keys = read_lines(folder / classes)
    if class_names:
        names = read_lines(folder / class_names)
        if keys is None or len(names) != len(keys):
            raise DataError(f"{folder / class_names} has {len(names)} names for {len(keys or ())} classes.")
    rows = [match.groupdict() for match in found.values()]
    if keys is None:
        ids = {row["class"]: int(row.get(order) or 0) for row in rows}
        keys = sorted(ids, key=lambda name: (ids[name], name))
    labels = index_of(keys, [row["class"] for row in rows], f"{path}: the class")
    return listed([folder / name for name in found], labels, keys, names=names, crop=crop)


def numbered(folder: Path, keys: Sequence[str] | None, *, images_at: str = ".") -> Found:
    """Folders named by the index of their class, 0 .. C - 1 without zeros in front (ImageNetV2); sorted as numbers."""
    base = folder / images_at
    names = [path.name for path in base.iterdir() if path.is_dir() and path.name.isdecimal()]
    if not names:
        raise DataError(f"{base} has no folders named by a number; unpack the archive there.")
    assert keys is not None
    outside = [name for name in names if int(name) >= len(keys)]
    if outside:
        raise DataError(f"{base}: the folder '{outside[0]}' is not in the list of {len(keys)} classes, 0 first.")
    paths: list[Path] = []
    labels: list[int] = []
    for name in sorted(names, key=int):
        files = listing(base / name)
        paths += files
        labels += [int(name)] * len(files)
    return listed(paths, labels, keys)
