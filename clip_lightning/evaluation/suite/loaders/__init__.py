"""Loaders: functions `(folder, keys, **options) -> Found` that read the labels of a test set and know its images.

An entry's YAML file names one per source; a new layout is a function here.
"""

from collections.abc import Callable

from clip_lightning.evaluation.suite.loaders import annotations, arrays, clips, files, tables, tars
from clip_lightning.evaluation.suite.loaders.found import Found

LOADERS: dict[str, Callable[..., Found]] = {
    "folders": files.folders,
    "numbered": files.numbered,
    "list": files.list_file,
    "table": tables.table,
    "parquet": tables.parquet,
    "winogavil": tables.winogavil,
    "wds": tars.wds,
    "cifar": arrays.cifar,
    "mnist": arrays.mnist,
    "stl10": arrays.stl10,
    "svhn_digits": arrays.svhn_digits,
    "svhn_numbers": arrays.svhn_numbers,
    "fer2013": arrays.fer2013,
    "pcam": arrays.pcam,
    "imagenet_devkit": annotations.imagenet_devkit,
    "objectnet": annotations.objectnet,
    "kitti": annotations.kitti,
    "clevr": annotations.clevr,
    "flowers": annotations.flowers,
    "cars": annotations.cars,
    "voc": annotations.voc,
    "clips": clips.clips,
    "vid_robust": clips.vid_robust,
    "ytbb_robust": clips.ytbb_robust,
}
