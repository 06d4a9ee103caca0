"""Lists of captions as they are published: for each image its path and all captions, in the order of the file.

| file | source |
|---|---|
| .json, `images[].sentences[].raw` | Karpathy's dataset_flickr30k.json and dataset_coco.json |
| .json, `images` and `annotations` | COCO, and CLIP_benchmark's coco_test_karpathy.json |
| .json, `image_paths` and `annotations` | CLIP_benchmark's files of other languages |
| .jsonl, `image/key` and a key per language | Crossmodal-3600 (XM3600) |
| test_1kcaptions_LANGUAGE.txt | XTD10: one caption a line, images in test_image_names.txt |
| .txt, .csv, .tsv: image, caption | CLIP_benchmark's flickr30k_test_karpathy.txt |
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from clip_lightning.errors import DataError
from clip_lightning.evaluation.prompts import read_lines

Captions = dict[str, list[str]]
_FIRST_PATHS = 64  # images of a list that are looked for
_IMAGE = re.compile(r'"?(.+?\.(?:jpe?g|png|webp|gif|bmp))"?(?:#\d+)?[,\t](.*)', re.IGNORECASE)


def read_captions(file: Path, language: str = "en", split: str = "test") -> Captions:
    """Every image that has captions, path -> captions, in the order of the file; surrounding space is dropped.

    Args:
        language: of files with several.
        split: of files with several.
    Raises: DataError where the file is another one, or has no caption of this language or split.
    """
    try:
        if file.suffix == ".json":
            pairs = list(_json(json.loads(file.read_text(encoding="utf-8-sig")), split))
        elif file.suffix == ".jsonl":
            pairs = list(_crossmodal(file, language))
        elif (names := file.with_name("test_image_names.txt")).is_file():
            pairs = _parallel(names, file)
        else:
            pairs = list(_rows(file))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not a list of captions that is known ({error!r}).") from error
    captions: Captions = {}
    for image, text in pairs:
        if text := text.strip():
            captions.setdefault(image, []).append(text)
    if not captions:
        what = f"in '{language}'" if file.suffix == ".jsonl" else f"of the split '{split}'"
        raise DataError(f"{file} has no caption {what}.")
    return captions


def find_images(
    base: Path, file: Path, names: Sequence[str], folders: Sequence[str], how_to_get: str = ""
) -> list[Path]:
    """Where the images of a list are: in the first of the folders below `base` that holds one of the first images.

    A list's own folders (`val2014/`) may be missing on disk. Raises DataError where no image is found.
    """
    for folder in (base / below for below in folders):
        for shorten in (str, _last_part):
            if any((folder / shorten(name)).is_file() for name in islice(names, _FIRST_PATHS)):
                return [folder / shorten(name) for name in names]
    tried = ", ".join(dict.fromkeys(str((base / below).resolve()) for below in folders))
    raise DataError(f"{file} names {names[0]}, which is not in {tried}. {how_to_get}".strip())


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _json(document: dict[str, Any], split: str) -> Iterator[tuple[str, str]]:
    if "image_paths" in document:
        for image, texts in zip(document["image_paths"], document["annotations"], strict=True):
            for text in texts if isinstance(texts, list) else [texts]:
                yield _last_part(image), text
    elif "annotations" in document:
        names = {image["id"]: image["file_name"] for image in document["images"]}
        for annotation in document["annotations"]:
            yield names[annotation["image_id"]], annotation["caption"]
    else:
        for image in document["images"]:
            if image["split"] == split:
                name = "/".join(part for part in (image.get("filepath", ""), image["filename"]) if part)
                for sentence in image["sentences"]:
                    yield name, sentence["raw"]


def _crossmodal(file: Path, language: str) -> Iterator[tuple[str, str]]:
    """XM3600: each line has `image/key` and, by language, `caption`, a list."""
    known: dict[str, None] = {}
    found = False
    with file.open(encoding="utf-8") as lines:
        for line in filter(str.strip, lines):
            row = json.loads(line)
            known |= dict.fromkeys(key for key, value in row.items() if isinstance(value, dict) and "caption" in value)
            if language in row:
                found = True
                for text in row[language]["caption"]:
                    yield f"{row['image/key']}.jpg", text
    if not found:
        raise DataError(f"{file} has no captions in '{language}'; it has {', '.join(known) or 'none'}.")


def _parallel(names: Path, captions: Path) -> list[tuple[str, str]]:
    images, texts = read_lines(names), read_lines(captions)
    if len(images) != len(texts):
        raise DataError(f"{captions} has {len(texts)} lines and {names.name} {len(images)}; they must be parallel.")
    return list(zip(images, texts, strict=True))


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    """Lines `image,caption`: a caption may hold commas without quotes, or be in quotes. A header is skipped."""
    for number, line in enumerate(read_lines(file)):
        if (match := _IMAGE.fullmatch(line)) is None:
            if number and line:
                raise DataError(f"{file}, line {number + 1}: '{line[:60]}' is not an image and a caption.")
            continue
        image, text = match.groups()
        if text.startswith('"') and text.endswith('"') and len(text) > 1:
            text = next(csv.reader([text]))[0]
        yield image, text
