"""The keys of `data`: which pairs a run learns from, how images are augmented, and where remote shards are kept."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from clip_lightning.config.schema.field import Rule, ascending, key, part

AREA_SHARES = ascending("two shares of the area, [least,most]", 1)
RATIOS = ascending("two ratios, [least,most]")
JITTER = Rule("empty, or four numbers", lambda value: len(value) in (0, 4))


@dataclass
class AugmentConfig:
    """Random changes of training images, drawn by (seed, epoch, sample id)."""

    crop: str = key(
        "area",
        "area (a random share of the area and ratio), square (short side resized, then a random square)",
        choices=("area", "square"),
        hash_default=False,
    )
    crop_scale: list[float] = key([0.9, 1.0], "share of the area (paper: section 2.3)", rule=AREA_SHARES)
    crop_ratio: list[float] = key([0.75, 1.3333], "width over height of the crop", rule=RATIOS)
    pad: int = key(0, "pixels of reflected border added before the crop (small images)", minimum=0)
    flip: float = key(0.0, "probability", minimum=0, maximum=1)
    color_jitter: list[float] = key([], "brightness, contrast, saturation, hue; empty: off", rule=JITTER)
    grey: float = key(0.0, "probability", minimum=0, maximum=1)


@dataclass
class ValidationConfig:
    """Pairs that training never sees."""

    path: str | None = key(
        None, "held-out pairs in the same layout; null: the tail of every shard, never trained on", science=False
    )
    num_samples: int = key(1024, "candidates of val_loss_1024 and recall; 0: no validation", minimum=0)


@dataclass
class CacheConfig:
    """Where and how local copies of remote shards are kept."""

    folder: str | None = key(None, "where remote shards are kept; null: ~/.cache/clip_lightning", science=False)
    max_gib: float = key(200.0, "largest size of that folder; the oldest shards leave first", above=0, science=False)
    retries: int = key(8, "attempts at a shard before the run stops", minimum=0, science=False)
    ahead: int = key(4, "shards downloaded before they are needed", minimum=0, science=False)


@dataclass
class DataConfig:
    """The pairs a run learns from."""

    name: str = key(MISSING, "second part of the run's name")
    kind: str = key(
        MISSING,
        "scenes, webdataset, parquet, table, folder, class_folders, coco, mixture",
        choices=("scenes", "webdataset", "parquet", "table", "folder", "class_folders", "coco", "mixture"),
    )
    path: str | None = key(
        None, "folder, file, fsspec URL, or pattern with braces like {00000..00099}, in quotes", science=False
    )
    num_samples: int | None = key(None, "published number of pairs; null: counted by the index", above=0)
    how_to_get: str = key("", "one sentence, shown when the path is missing", science=False)
    model: str = key("vit_b32", "the model option taken when `model=` is not given", science=False)
    compute: str = key("paper", "the compute option taken when `compute=` is not given", science=False)
    tasks: list[str] = key([], "zero-shot tasks taken when `eval.tasks` is null", science=False)
    image_keys: list[str] = key(["jpg", "jpeg", "png", "webp"], "as caption_keys")
    caption_keys: list[str] = key(["txt", "caption"], "member, column, json key: first found")
    augment: AugmentConfig = part(AugmentConfig)
    validation: ValidationConfig = part(ValidationConfig)
    cache: CacheConfig = part(CacheConfig)
    window_shards: int | None = key(
        None, "shards mixed in one shuffle window; null: all (local), 32 (remote or network)", above=0
    )
    resampled: bool = key(False, "draw with replacement")
    exif_rotation: bool = key(False, "images are turned upright by their EXIF tag")
    jpeg_scaling: bool = key(False, "decode at 1/2, 1/4, 1/8 where the crop allows it (training only; inexact)")
    max_pixels: int = key(178_956_970, "larger images are refused from their header", above=0)
    max_bad_share: float = key(0.01, "more bad samples than this stop the run", minimum=0, maximum=1)
    index_folder: str | None = key(None, "where sidecars go when the data's folder is read-only", science=False)
    exclude: str | None = key(
        None, "file of samples that are left out: on each line a sample id, or sha256:HASH of an image", science=False
    )
    excluded: str = key("", "hash of that list, filled in by the composition", hash_default=False)
    mixture: dict[str, float] = key({}, "data option: weight per sample")
    mixture_paths: dict[str, str] = key({}, "data option: path", science=False)
    parts: dict[str, Any] = key({}, "the data options of `mixture`, filled in by the composition", science=False)
    quotes: bool | None = key(
        None,
        "table: fields may be in quotes; null: in .csv they may, in .tsv quotes are text",
        hash_default=False,
    )
    options: dict[str, Any] = key({}, "arguments of _target_")
    _target_: str | None = key(None, "the user's own layout")
