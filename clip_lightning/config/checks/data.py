"""Whether the keys of `data` have an effect with its kind."""

from collections.abc import Iterator

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
    if data.kind != "mixture":
        unread += ["mixture", "mixture_paths"]
    if data.kind != "table":
        unread.append("quotes")
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
