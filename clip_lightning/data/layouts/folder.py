"""Folders of images: a text file beside each image, or one JSON with all captions (COCO's, or Karpathy's splits)."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.images.headers import OTHER_SUFFIXES, READABLE_SUFFIXES
from clip_lightning.data.layouts.file_rows import FileRows, file_table, kept_table
from clip_lightning.data.layouts.layout import Layout, Problem, causes, digest
from clip_lightning.data.layouts.tar_index import texts_of
from clip_lightning.data.sources import list_sources
from clip_lightning.errors import DataError

Walk = Callable[[Path], Iterator[list[str]]]
_VERSION = "1"  # goes up with every change of what is read from folders and JSON files
_LISTING = b"listing"
_RECENT = 5_000_000_000  # ns: more than the resolution of any file system's times, and than clocks of a cluster differ
_NEVER = 1 << 62  # a time after which no list is made
_FIRST_PATHS = 64  # images of a list that are looked for
_NO_CAPTIONS = {"readme", "license", "licence", "notice", "changelog", "requirements", "classnames", "labels"}
_TRAINING_SPLITS = ("train", "restval")  # of Karpathy and Fei-Fei, 2015


def build_folder(config: DataConfig, path: str) -> Layout:
    """Images anywhere below `path`, each with a text file of the same name beside it.

    Raises: DataError where the folder is missing.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise DataError(f"data.path={path} is not a folder. {config.how_to_get}".strip())
    keys = (*config.image_keys, "", *config.caption_keys)
    return FileRows(
        str(folder),
        folder,
        kept_listing(config, folder, keys, lambda walk: _list(walk(folder), config)),
        config.caption_keys,
    )


def _list(walk: Iterator[list[str]], config: DataConfig) -> pa.Table:
    """The images with captions among the files of all folders.

    Raises: DataError where there are none.
    """
    paths: list[str] = []
    problems: list[Problem] = []
    suffixes = Counter[str]()
    for files in walk:
        suffixes.update(Path(name).suffix.lower() for name in files)
        found, left = _pairs(files, config)
        paths += found
        problems += left
    if not paths:
        listed = ", ".join(f"{suffix or 'no suffix'}: {count:,}" for suffix, count in suffixes.most_common(5))
        why = f"{causes(problems)}; " if problems else ""
        raise DataError(
            f"data.path={config.path} holds no usable sample ({why}its files by suffix: {listed or 'none'}); each "
            f"image needs a file of the same name that ends in .{' or .'.join(config.caption_keys)} "
            "(data.caption_keys); images in one folder per class, without captions, are data=class_folders."
        )
    return file_table(paths, problems)


def _pairs(files: list[str], config: DataConfig) -> tuple[list[str], list[Problem]]:
    """The images of one folder that have a caption, and what is left out."""
    stems: dict[str, list[str]] = {}
    for name in files:
        stem, _, extension = name.rpartition(".")
        if Path(stem).name:  # not hidden
            stems.setdefault(stem, []).append(extension)
    paths, problems = [], []
    for stem, extensions in stems.items():
        images = [one for one in extensions if one.lower() in config.image_keys]
        has_caption = any(one.lower() in config.caption_keys for one in extensions)
        others = [one for one in extensions if one.lower() in READABLE_SUFFIXES | OTHER_SUFFIXES and one not in images]
        if has_caption:
            paths += [f"{stem}.{extension}" for extension in images]
        else:
            problems += [Problem("", f"{stem}.{extension}", "missing caption") for extension in images]
        if others and not images:
            problems.append(unknown_image(stem, others[0]))
        elif has_caption and not images and Path(stem).name.lower() not in _NO_CAPTIONS:
            problems.append(Problem("", f"{stem}.{extensions[0]}", "missing image"))
    return sorted(paths), problems


def unknown_image(stem: str, extension: str) -> Problem:
    """An image with an extension that `data.image_keys` lacks."""
    advice = "see data.image_keys" if extension.lower() in READABLE_SUFFIXES else "convert them to JPEG or PNG"
    hint = f"images that end in .{extension}; {advice}"
    return Problem("", f"{stem}.{extension}", "unknown extension", 1, hint)


def build_coco(config: DataConfig, path: str) -> Layout:
    """One JSON of captions; `path` is that file, or COCO's folder with `annotations/captions_train*.json` in it.

    The images are looked for beside the JSON, in the folder of its name (`train2017` for
    `captions_train2017.json`), in `images`, and in `<name>-images` for Karpathy's `dataset_<name>.json`.

    Raises: DataError where the file or the images are missing, or it is another kind of JSON.
    """
    file = _captions_file(Path(path).expanduser().absolute(), config)
    (source,) = list_sources(str(file), ".json")
    table = kept_table(config, digest(_VERSION, "coco", *map(str, source)), lambda: _read_json(file))
    folder = _image_folder(file, table["path"].slice(0, _FIRST_PATHS).to_pylist(), config)
    return FileRows(str(file), folder, table)


def _read_json(file: Path) -> pa.Table:
    """The images of a JSON of captions that have any."""
    try:
        document = json.loads(file.read_bytes())
        pairs = dict(_karpathy(document) if "annotations" not in document else _coco(document))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not a JSON of captions like COCO's ({error!r}).") from error
    problems = [Problem("", name, "missing caption") for name, texts in pairs.items() if not texts]
    pairs = {name: texts for name, texts in pairs.items() if texts}
    return file_table(list(pairs), problems, list(pairs.values()))


def kept_listing(config: DataConfig, folder: Path, keys: Sequence[str], make: Callable[[Walk], pa.Table]) -> pa.Table:
    """What `make` makes of the files below a folder; kept until one of its folders changes, so that one rank lists it.

    Args:
        keys: what else the table depends on.
        make: takes `files_below`.
    """

    def make_with_stamps() -> pa.Table:
        begun, stamps = time.time_ns(), {str(folder): _stamp(folder)}
        table = make(partial(files_below, stamps=stamps))
        listing = json.dumps({"begun": begun, "stamps": stamps})
        return table.replace_schema_metadata(table.schema.metadata | {_LISTING: listing})

    def is_current(metadata: dict[bytes, bytes]) -> bool:
        listing = json.loads(metadata[_LISTING])
        # A folder that was changed while it was listed, or just before, may have changed again at the same time stamp.
        newest = listing["begun"] - _RECENT
        return all(
            stamp[1] < newest and _stamp(Path(name)) == tuple(stamp) for name, stamp in listing["stamps"].items()
        )

    return kept_table(config, digest(_VERSION, str(folder), *keys), make_with_stamps, is_current)


def _stamp(folder: Path) -> tuple[int, int]:
    """Inode and time of the last change of a folder's entries, in nanoseconds."""
    stat = folder.stat()
    return stat.st_ino, stat.st_mtime_ns


def files_below(folder: Path, stamps: dict[str, tuple[int, int]] | None = None) -> Iterator[list[str]]:
    """The files of each folder below `folder`, relative to it, sorted; links are followed, each folder is read once.

    Args: stamps: gets the inode and the time of the last change of each folder.
    """
    seen = set[tuple[int, int]]()
    for current, folders, files in os.walk(folder, followlinks=True):
        here = Path(current).stat()
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders.sort()
        below = Path(current).relative_to(folder)
        if stamps is not None:
            # A link that leads nowhere may lead to a folder later, and changes no time here: such a list is not kept.
            with os.scandir(current) as entries:
                is_open = any(one.is_symlink() and not Path(one.path).exists() for one in entries)
            stamps[current] = (here.st_ino, _NEVER if is_open else here.st_mtime_ns)
        yield [str(below / name) for name in sorted(files)]


def _captions_file(path: Path, config: DataConfig) -> Path:
    if path.is_file():
        return path
    found = [*sorted(path.glob("annotations/captions_train*.json")), *sorted(path.glob("dataset_*.json"))]
    if not found:
        wanted = "annotations/captions_train*.json or dataset_*.json"
        raise DataError(f"data.path={config.path} has no {wanted}. {config.how_to_get}".strip())
    return found[0]


def _coco(document: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    captions: dict[Any, list[str]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        captions.setdefault(annotation["image_id"], []).extend(texts_of(annotation["caption"]))
    for image in document["images"]:
        yield image["file_name"], captions[image["id"]]


def _karpathy(document: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for image in document["images"]:
        if image.get("split", "train") in _TRAINING_SPLITS:
            below = Path(image.get("filepath", ""))
            yield str(below / image["filename"]), texts_of([sentence["raw"] for sentence in image["sentences"]])


def _image_folder(file: Path, first: list[str], config: DataConfig) -> Path:
    """The folder in which one of the first images is found."""
    name = file.stem.removeprefix("captions_").removeprefix("dataset_")
    roots = [file.parent, file.parent.parent]
    candidates = [root / below for root in roots for below in (name, "images", f"{name}-images", f"{name}_images", "")]
    for folder in candidates:
        if any((folder / path).is_file() for path in first):
            return folder
    tried = ", ".join(str(folder) for folder in candidates[:3])
    missing = first[0] if first else "no image"
    raise DataError(f"{file} names {missing}, which is not in {tried}. {config.how_to_get}".strip())
