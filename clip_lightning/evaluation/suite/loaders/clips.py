"""Test sets of video: one frame of each clip, or frames around an anchor."""

import csv
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError
from clip_lightning.evaluation.prompts import read_lines
from clip_lightning.evaluation.suite.loaders.found import (
    Files,
    Found,
    Image,
    MissingError,
    index_of,
    listing,
    names_in,
    present,
)

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm")


class Frames:
    """The middle frame of clips; a clip may be an image already, or a folder of its frames."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Args: paths: of clip k: a video, an image, or a folder of frames."""
        self.paths = list(paths)

    def __call__(self, k: int) -> Image:
        """The frame of clip k. Raises BadSample."""
        path = self.paths[k]
        if path.is_dir():
            frames = listing(path)
            if not frames:
                raise BadSample("missing image", f"{path.name} has no frames")
            return Files(frames)(len(frames) // 2)
        return middle_frame(path) if path.suffix.lower() in VIDEO_SUFFIXES else Files([path])(0)


def middle_frame(path: Path) -> np.ndarray:
    """The middle frame of a video, uint8 [H, W, 3], in the order of presentation. Raises BadSample."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            total = stream.frames or sum(1 for _ in container.decode(stream))
            container.seek(0)
            for number, frame in enumerate(container.decode(stream)):
                if number == total // 2:
                    return np.asarray(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError) as error:
        raise BadSample("damaged image", f"{path.name}: {error}") from error
    raise BadSample("damaged image", f"{path.name} ends before its middle frame")


def clips(
    folder: Path,
    keys: Sequence[str] | None,
    *,
    list: str,
    stem: str,
    label: str,
    separator: str = ",",
    columns: Sequence[str] = (),
    classes: str = "",
) -> Found:
    """A list of clips with their classes; each is evaluated by its middle frame.

    Args:
        folder: of the data set.
        keys: class keys; None where `classes` or the list gives them.
        list: the file, with a header, or without one where `columns` names what it has.
        stem: the clip's path without suffix, of the columns: a video, an image or a folder of frames of that name.
        label: the class, of the columns.
        separator: between columns.
        columns: names of the columns of a file without header.
        classes: file of "number key" lines.
    Raises: DataError where no clip is present, or only videos are and nothing can decode them.
    """
    with (folder / list).open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.DictReader(file, columns or None, delimiter=separator) if row]
    if classes:
        keys = [line.split(" ", 1)[1] for line in read_lines(folder / classes)]
    fields = [{**row, **_parts(row)} for row in rows]
    names = [label.format(**row) for row in fields]
    keys = keys if keys is not None else sorted(set(names))
    labels = index_of(keys, names, f"{folder / list}: the class")
    names_in.cache_clear()
    places = [_place(folder / stem.format(**row)) for row in fields]
    kept = [k for k, place in enumerate(places) if place is not None]
    if not kept:
        example = folder / stem.format(**fields[0]) if fields else folder
        raise MissingError(f"none of the {len(rows):,} listed clips is present, such as {example}; unpack the clips.")
    paths = [place for place in places if place is not None]
    if any(path.suffix.lower() in VIDEO_SUFFIXES for path in paths) and importlib.util.find_spec("av") is None:
        raise DataError(
            f"{folder} holds videos, which the package av decodes; install it (pip install av), or put an image of "
            "each clip's middle frame beside it under the same name."
        )
    return Found(labels[kept], Frames(paths), keys, num_listed=len(rows))


def _parts(row: Mapping[str, str]) -> dict[str, str]:
    """`folder` and `name` of a column `path`, and times of six digits as in names of Kinetics clips."""
    more = {key + "6": f"{int(value):06d}" for key, value in row.items() if value and value.isdecimal()}
    path = Path(row["path"]) if "path" in row else None
    return more if path is None else {**more, "folder": str(path.parent), "name": path.stem}


def _place(stem: Path) -> Path | None:
    """Where a clip is: an extracted frame is taken before a video, which is slower to read."""
    for suffix in (".jpg", ".jpeg", ".png", "", *VIDEO_SUFFIXES):
        path = stem.parent / (stem.name + suffix)
        if path.is_dir() if not suffix else path.name in names_in(stem.parent):
            return path
    return None


def vid_robust(
    folder: Path,
    keys: Sequence[str] | None,
    *,
    labels: str,
    sets: str,
    class_file: str,
    imagenet: str = "",
    images_at: str,
) -> Found:
    """ImageNet-Vid-Robust: groups of an anchor and up to 20 frames around it; each frame has labels of its own.

    Args:
        folder: of the data set.
        keys: None; `class_file` gives them.
        labels: JSON of the classes, 0-based, of each frame.
        sets: JSON of the frames around each anchor.
        class_file: file of "synset number name" lines, number from 1.
        imagenet: JSON of the ImageNet classes of each class.
        images_at: folder of the frames.
    """
    rows = [line.split() for line in read_lines(folder / class_file)]
    classes = [name for _, _, name in sorted(rows, key=lambda row: int(row[1]))]
    labels_of = _json(folder / labels)
    groups_of = _json(folder / sets)
    groups = [[anchor, *(frame for frame in near if frame != anchor)] for anchor, near in groups_of.items()]
    table = _many([labels_of[frame] for group in groups for frame in group], len(classes))
    return _grouped(folder / images_at, groups, table, classes, _allowed(folder / imagenet, range(len(classes))))


PROBLEMS = {  # of a frame in pmk_labels.json, as imagenet-testbed's ytbb_robust.py lists them
    "dissimilar",
    "problematic",
    "incorrect",
    "dont know",
    "deformation",
    "background-change",
    "occlusion-increased",
    "blur-increase",
    "bad-anchor",
}


def ytbb_robust(
    folder: Path,
    keys: Sequence[str] | None,
    *,
    anchors: str,
    annotations: str,
    index: str,
    reviewed: str = "",
    imagenet: str = "",
    images_at: str,
) -> Found:
    """YouTube-BB-Robust: groups as in `vid_robust`; the labels of the anchor hold for the frames around it.

    An anchor counts where its annotation is good and neither bad nor unsure; its classes are those annotated and that
    of the list. In the list 22 is car and 23 none, the other way round than in the index of names. A frame within 10 of
    an anchor counts where its review says similar and names no problem; without a file of reviews, anchors count alone.

    Args:
        folder: of the data set.
        keys: None; `index` gives them.
        anchors: csv of video, time and class.
        annotations: JSON of the anchors' labels; keys may be absolute paths, of which the last two parts count.
        index: JSON of the class names by number.
        reviewed: JSON of the labels of pairs "anchor,frame".
        imagenet: JSON of the ImageNet classes of each class; classes that it lacks have none.
        images_at: folder of the frames.
    """
    names = {int(number): name for number, name in _json(folder / index).items()}
    classes = [names[number] for number in sorted(names) if names[number] != "none"]
    column = {name: k for k, name in enumerate(classes)}
    with (folder / anchors).open(newline="", encoding="utf-8") as file:
        listed_class = {f"{row['ytid']}_{row['time_ms']}": int(row["label"]) for row in csv.DictReader(file)}
    exchanged = {22: 23, 23: 22}
    marks = _marks(folder / annotations)
    reviews = _marks(folder / reviewed) if reviewed else {}
    bad = {pair.split(",")[0] for pair, found in reviews.items() if "bad-anchor" in found}
    around: dict[str, list[str]] = {}
    for pair, found in reviews.items():
        anchor, frame = pair.split(",")
        distance = abs(_number(frame) - _number(anchor))
        if "similar" in found and not found & PROBLEMS and 0 < distance <= 10:
            around.setdefault(anchor, []).append(frame)
    groups: list[list[str]] = []
    rows: list[list[int]] = []
    for anchor, found in marks.items():
        clip = anchor.split("/")[0]
        if "good" not in found or found & {"bad", "unsure"} or anchor in bad or clip not in listed_class:
            continue
        own = names[exchanged.get(listed_class[clip], listed_class[clip])]
        groups.append([anchor, *around.get(anchor, ())])
        rows += [sorted({column[name] for name in found | {own} if name in column})] * len(groups[-1])
    numbers = [number for number in sorted(names) if names[number] != "none"]
    table = _many(rows, len(classes))
    return _grouped(folder / images_at, groups, table, classes, _allowed(folder / imagenet, numbers))


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def _marks(path: Path) -> dict[str, set[str]]:
    """Names of the labels of each key of an annotation file; of a key that occurs twice the last ones count."""
    content = _json(path)
    return {
        ",".join("/".join(part.split("/")[-2:]) for part in one["key"].split(",")): {
            content["labels"][label] for label in one["labels"]
        }
        for one in content["annotations"]
    }


def _number(frame: str) -> int:
    """The number of a frame: `VIDEO_MS/frame-NUMBER.jpg`."""
    return int(frame.rpartition("-")[2].split(".")[0])


def _allowed(path: Path, numbers: Iterable[int]) -> np.ndarray | None:
    """bool [1000, C] from a JSON of ImageNet's classes by number of the class; None without such a file."""
    if not path.is_file():
        return None
    content, numbers = _json(path), list(numbers)
    table = np.zeros((1000, len(numbers)), dtype=bool)
    for k, number in enumerate(numbers):
        table[content.get(str(number), []), k] = True
    return table


def _many(rows: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    table = np.zeros((len(rows), num_classes), dtype=bool)
    for k, row in enumerate(rows):
        table[k, list(row)] = True
    return table


def _grouped(
    base: Path, frames: Sequence[Sequence[str]], table: np.ndarray, names: Sequence[str], allowed: np.ndarray | None
) -> Found:
    """Found of the frames that are present; a group whose anchor, its first frame, is absent is left out."""
    paths = [base / frame for group in frames for frame in group]
    groups = np.repeat(np.arange(len(frames)), [len(group) for group in frames])
    there = present(paths)
    anchors = np.searchsorted(groups, groups)  # of each frame the row of its anchor
    rows = np.flatnonzero(there & there[anchors])
    if not len(rows):
        example = paths[0] if paths else base
        raise MissingError(
            f"none of the {len(frames):,} anchor frames is present, such as {example}; unpack the frames."
        )
    renumbered = np.unique(groups[rows], return_inverse=True)[1].astype(np.int64)
    read = Files([paths[int(k)] for k in rows])
    return Found(table[rows], read, names, names, num_listed=len(paths), groups=renumbered, allowed=allowed)
