"""Whether a run's data exists here, and what a dry run does without it. Imports no torch."""

import re
from collections.abc import Iterator
from pathlib import Path

from clip_lightning.config.schema import Config


def counts_as_published(config: Config) -> bool:
    """Whether a dry run takes the published number of pairs, since the data is not there."""
    data = config.data
    if not config.dry_run or data.num_samples is None or data.kind in ("scenes", "mixture"):
        return False
    return data.path is None or ("://" not in data.path and not _stands(data.path))


def problems(config: Config) -> Iterator[str]:
    """Local paths that are not there."""
    data = config.data
    if data.kind in ("scenes", "mixture") or data._target_:
        places = {f"data.mixture_paths.{name}": path for name, path in data.mixture_paths.items()}
    elif counts_as_published(config):
        places = {}
    elif data.path is None:
        yield f"data.path is not set and data={data.name} needs one; {data.how_to_get or 'write data.path=DIR'}"
        places = {}
    else:
        places = {"data.path": data.path}
    if data.validation.path is not None:
        places["data.validation.path"] = data.validation.path
    for key, path in places.items():
        if "://" not in path and not _stands(path):
            get = f": {data.how_to_get.rstrip('.')}" if data.how_to_get else ""
            yield f"{key}={path} does not exist{get}; write {key}=PATH if the data is elsewhere"


def _stands(path: str) -> bool:
    """Whether a local path exists; of one with braces or stars, the folder before them."""
    plain = re.split(r"[{*?\[]", path, maxsplit=1)[0]
    return Path(path).exists() if plain == path else Path(plain.rpartition("/")[0] or ".").is_dir()
