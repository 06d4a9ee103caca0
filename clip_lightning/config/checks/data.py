"""Whether the keys of `data` have an effect with its kind."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from clip_lightning.config import parts
from clip_lightning.config.schema import DataConfig

_UNREAD_BY_SCENES = (
    "path",
    "image_keys",
    "caption_keys",
    "exif_rotation",
    "jpeg_scaling",
    "window_shards",
    "index_folder",
)


def problems(data: DataConfig) -> Iterator[str]:
    """One sentence for each key that its kind of data does not read."""
    if data.options and not data._target_:
        yield "data.options has no effect without data._target_, whose arguments it holds; leave it out"
    unread = []
    if data.kind == "scenes" and not data._target_:
        unread = [*_UNREAD_BY_SCENES]
    if data.kind == "class_folders":
        unread = ["caption_keys"]
    if data.kind != "mixture":
        unread += ["mixture", "mixture_paths"]
    if data.kind != "table":
        unread.append("quotes")
    if data.kind == "scenes" and not data._target_ and data.path is not None:
        unread.remove("path")
        yield f"data.path={data.path} has no effect with data={data.name}; write data={_option_for(data.path)} as well"
    default = DataConfig()
    for name in ("crop_scale", "crop_ratio"):
        if data.augment.crop == "square" and getattr(data.augment, name) != getattr(default.augment, name):
            yield f"data.augment.{name} has no effect with data.augment.crop=square; leave it out"
    for name in unread:
        if (value := getattr(data, name)) != getattr(default, name):
            yield f"data.{name}={value} has no effect with data.kind={data.kind}; leave it out"
    if data.kind == "mixture":
        if not data.mixture or min(data.mixture.values()) <= 0:
            yield f"data.mixture={data.mixture} must give each data option a weight above 0, like {{cc12m: 1.0}}"
        if strangers := sorted(data.mixture_paths.keys() - data.mixture.keys()):
            yield f"data.mixture_paths names {', '.join(strangers)}, without a weight in data.mixture; add one"
        yield from parts.problems(data)


def _option_for(path: str) -> str:
    """The data option for what a path holds, by the endings of its files."""
    options = {
        "tar": "webdataset",
        "csv": "csv",
        "tsv": "csv",
        "jsonl": "csv",
        "parquet": "parquet",
        "arrow": "parquet",
    }
    place = Path(path)
    if place.is_dir():
        endings = [file.suffix.lstrip(".") for file in itertools.islice(place.iterdir(), 1000) if file.is_file()]
    else:
        endings = [path.rstrip("/").rpartition(".")[2]]
    found = next((options[ending] for ending in endings if ending in options), None)
    return found or ("folder" if place.is_dir() else "webdataset")
