"""Folders of images: a text file beside each image, or one JSON with all captions (COCO's, or Karpathy's splits)."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.images.headers import OTHER_SUFFIXES, READABLE_SUFFIXES
from clip_lightning.data.layouts.file_rows import FileRows
from clip_lightning.data.layouts.layout import Layout, Problem, causes
from clip_lightning.data.layouts.tar_index import texts_of
from clip_lightning.errors import DataError

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
    paths: list[str] = []
    problems: list[Problem] = []
    suffixes = Counter[str]()
    for files in files_below(folder):
        suffixes.update(Path(name).suffix.lower() for name in files)
        found, left = _pairs(files, config)
        paths += found
        problems += [problem._replace(shard=str(folder)) for problem in left]
    if not paths:
        listed = ", ".join(f"{suffix or 'no suffix'}: {count:,}" for suffix, count in suffixes.most_common(5))
        why = f"{causes(problems)}; " if problems else ""
        raise DataError(
            f"data.path={path} holds no usable sample ({why}its files by suffix: {listed or 'none'}); each image needs "
            f"a file of the same name that ends in .{' or .'.join(config.caption_keys)} (data.caption_keys); images in "
            "one folder per class, without captions, are data=class_folders."
        )
    return FileRows(str(folder), folder, pa.array(paths, pa.string()), None, problems, config.caption_keys)


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
    try:
        document = json.loads(file.read_bytes())
        pairs = dict(_karpathy(document) if "annotations" not in document else _coco(document))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not a JSON of captions like COCO's ({error!r}).") from error
    problems = [Problem(str(file), name, "missing caption") for name, texts in pairs.items() if not texts]
    pairs = {name: texts for name, texts in pairs.items() if texts}
    folder = _image_folder(file, list(islice(pairs, _FIRST_PATHS)), config)
    captions = pa.array(list(pairs.values()), pa.list_(pa.string()))
    return FileRows(str(file), folder, pa.array(list(pairs), pa.string()), captions, problems)


def files_below(folder: Path) -> Iterator[list[str]]:
    """The files of each folder below `folder`, relative to it, sorted; links are followed, each folder is read once."""
    seen = set[tuple[int, int]]()
    for current, folders, files in os.walk(folder, followlinks=True):
        here = Path(current).stat()
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders.sort()
        below = Path(current).relative_to(folder)
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
