"""Which data option reads what a path holds. Looks at names only."""

import os
import re
from itertools import islice
from pathlib import Path

from clip_lightning.errors import DataError

_BY_SUFFIX = {
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".arrow": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "csv",
    ".ndjson": "csv",
    ".json": "coco",
}
# Patterns of a folder's files, the first that matches decides.
_BY_FILES = {
    "dataset_dict.json": "parquet",
    "state.json": "parquet",
    "*.arrow": "parquet",
    "*.tar": "webdataset",
    "*.parquet": "parquet",
    "annotations/captions_train*.json": "coco",
    "dataset_*.json": "coco",
    "*/*.tar": "webdataset",
    "*/*.parquet": "parquet",
}
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_MOST_FILES = 10_000  # of a folder that are looked at


def data_option(path: str) -> str:
    """The option of the group `data` for a path: webdataset, parquet, csv, coco or folder.

    Raises:
        DataError: there is nothing, or nothing that is known.
    """
    if option := _BY_SUFFIX.get(Path(re.sub(r"[}*]+$", "", path)).suffix.lower()):
        return option
    folder = Path(path).expanduser()
    if folder.is_dir():
        for pattern, option in _BY_FILES.items():
            if any(folder.glob(pattern)):
                return option
        files = (name for _, _, names in os.walk(folder, followlinks=True) for name in names)
        if any(name.lower().endswith(_IMAGES) for name in islice(files, _MOST_FILES)):
            return "folder"
        tables = [found.name for pattern in ("*.csv", "*.tsv", "*.jsonl") for found in sorted(folder.glob(pattern))]
        if tables:
            raise DataError(f"{path} is a folder with {', '.join(tables[:3])}; give the path of the table itself")
    elif "://" not in path and not folder.exists():
        raise DataError(f"{path} does not exist")
    raise DataError(f"{path} holds no tars, parquet, tables or images; write data=OPTION for another kind of data")
