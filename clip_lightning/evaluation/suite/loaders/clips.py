"""Test sets of video: one frame of each clip, or frames around an anchor."""

import csv
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError
from clip_lightning.evaluation.prompts import read_lines
from clip_lightning.evaluation.suite.loaders.found import Files, Found, Image, index_of, listed, listing, present

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm")
NO_ANNOTATION = 3  # of YTBB's anchor_labels.json: good, unsure, bad come before the classes


class Frames:
    """The middle frame of clips; a clip may be an image already, or a folder of its frames."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Args: paths: of clip k: a video, an image, or a folder of frames."""
        self.paths = list(paths)

    def __call__(self, k: int) -> Image:
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
    list: str,  # noqa: A002 - the key of the YAML file
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
    places = [_place(folder / stem.format(**row)) for row in fields]
    kept = [k for k, place in enumerate(places) if place is not None]
    if not kept:
        example = folder / stem.format(**fields[0]) if fields else folder
        raise DataError(f"none of the {len(rows):,} listed clips is present, such as {example}; unpack the clips.")
    paths = [place for place in places if place is not None]
    if any(path.suffix.lower() in VIDEO_SUFFIXES for path in paths) and importlib.util.find_spec("av") is None:
        raise DataError(
            f"{folder} holds videos, which the package av decodes; install it (pip install av), or put an image of each "
            "clip's middle frame beside it under the same name."
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
        if path.is_dir() if not suffix else path.name in _names(stem.parent):
            return path
    return None


def _names(folder: Path) -> frozenset[str]:
    from clip_lightning.evaluation.suite.loaders.found import _names_in

    return _names_in(folder)


def vid_robust(
    folder: Path, keys: Sequence[str] | None, *, labels: str, sets: str, class_file: str, images_at: str
) -> Found:
    """ImageNet-Vid-Robust: groups of an anchor and up to 20 frames around it; each frame has labels of its own.

    Args:
        folder: of the data set.
        keys: None; `class_file` gives them.
        labels: JSON of the classes, 0-based, of each frame.
        sets: JSON of the frames around each anchor.
        class_file: file of "synset number name" lines, number from 1.
        images_at: folder of the frames.
    """
    classes = [line.split()[2] for line in read_lines(folder / class_file)]
    labels_of = json.loads((folder / labels).read_text(encoding="utf-8"))
    groups_of = json.loads((folder / sets).read_text(encoding="utf-8"))
    frames: list[str] = []
    groups: list[int] = []
    for number, (anchor, around) in enumerate(groups_of.items()):
        frames += [anchor, *(frame for frame in around if frame != anchor)]
        groups += [number] * (len(frames) - len(groups))
    table = _many([labels_of[frame] for frame in frames], len(classes))
    return _grouped([folder / images_at / frame for frame in frames], table, classes, groups, {}, len(groups_of))


def ytbb_robust(
    folder: Path,
    keys: Sequence[str] | None,
    *,
    anchors: str,
    annotations: str,
    index: str,
    reviewed: str,
    images_at: str,
) -> Found:
    """YouTube-BB-Robust: groups as in `vid_robust`; the labels of the anchor hold for the frames around it.

    An anchor counts where its annotation is good and neither bad nor unsure; its classes are those annotated and that
    of the list. In the list 22 is car and 23 none, the other way round than in the index of names.

    Args:
        folder: of the data set.
        keys: None; `index` gives them.
        anchors: csv of video, time and class.
        annotations: JSON of the anchors' labels: good, unsure, bad, then the classes; keys may be absolute paths.
        index: JSON of the class names by number.
        reviewed: JSON of the frames around each anchor that show the same.
        images_at: folder of the frames.
    """
    by_number = json.loads((folder / index).read_text(encoding="utf-8"))
    classes = [by_number[str(k)] for k in range(len(by_number))]
    none = classes.index("none")
    swap = {none: none + 1, none + 1: none}
    found = json.loads((folder / annotations).read_text(encoding="utf-8"))["annotations"]
    marks = {"/".join(one["key"].split("/")[-2:]): set(one["labels"]) for one in found}
    clip_of = {name.rpartition("/")[0]: name for name in marks}
    around = {
        "/".join(name.split("/")[-2:]): ["/".join(frame.split("/")[-2:]) for frame in near]
        for name, near in json.loads((folder / reviewed).read_text(encoding="utf-8")).items()
    }
    frames: list[str] = []
    groups: list[int] = []
    rows: list[list[int]] = []
    with (folder / anchors).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = clip_of.get(f"{row['ytid']}_{row['time_ms']}")
            if name is None or 0 not in marks[name] or marks[name] & {1, 2}:
                continue
            number = swap.get(int(row["label"]), int(row["label"]))
            labels = {mark - NO_ANNOTATION for mark in marks[name] if mark >= NO_ANNOTATION} | {number}
            group = [name, *(frame for frame in around.get(name, ()) if frame != name)]
            rows += [[label for label in labels if label != none]] * len(group)
            groups += [groups[-1] + 1 if groups else 0] * len(group)
            frames += group
    kept = [name for name in classes if name != "none"]
    table = np.delete(_many(rows, len(classes)), none, axis=1)
    return _grouped([folder / images_at / frame for frame in frames], table, kept, groups, {}, groups[-1] + 1)


def _many(rows: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    table = np.zeros((len(rows), num_classes), dtype=bool)
    for k, row in enumerate(rows):
        table[k, list(row)] = True
    return table


def _grouped(
    paths: Sequence[Path],
    table: np.ndarray,
    names: Sequence[str],
    groups: Sequence[int],
    more: Mapping[str, str],
    num: int,
) -> Found:
    """Found of the frames that are present; a group whose anchor is absent is left out, and num_listed counts anchors."""
    there, numbers = present(paths), np.asarray(groups)
    first = np.searchsorted(numbers, numbers)  # groups are consecutive: the row of each one's anchor
    kept = there & there[first]
    opened = listed(paths, table, names) if kept.any() else listed([], np.zeros((0, len(names)), bool), names)
    rows = np.flatnonzero(kept)
    renumbered = np.unique(numbers[rows], return_inverse=True)[1].astype(np.int64)
    read = Files([paths[k] for k in rows])
    return Found(table[rows], read, opened.keys, opened.keys, num_listed=len(paths), groups=renumbered, **more)
