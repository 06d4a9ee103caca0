"""The parts of a mixture: each is a data option, of this project or of the user, with the path given for it.

They are resolved with the rest of the command and kept in `data.parts` of the frozen config, so that nothing that reads
data composes a config.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from clip_lightning.config import keys
from clip_lightning.config.schema import DataConfig
from clip_lightning.errors import UserError


def resolve(data: DataConfig, options: Sequence[str], section: Callable[[str], DictConfig]) -> dict[str, Any]:
    """The settings of each data option that `data.mixture` names, as plain values of `DataConfig`'s fields.

    Args:
        options: the options of the group `data`, the user's own included.
        section: composes the `data` section of an option.

    Raises:
        UserError: there is no such option, or `data.parts` was set by hand.
    """
    if data.parts:
        raise UserError("data.parts is filled in from data.mixture and data.mixture_paths; set those")
    if unknown := [name for name in data.mixture if name not in options]:
        near = {name: keys.did_you_mean(keys.near(name, options)) for name in unknown}
        raise UserError(*(f"data.mixture names {name}: there is no such option of data{near[name]}" for name in near))
    parts: dict[str, Any] = {}
    for name in data.mixture:
        part = OmegaConf.to_container(section(name), resolve=True)
        assert isinstance(part, dict)
        # A path is taken as it is: no escapes and no grammar.
        own = {"path": data.mixture_paths.get(name, part["path"]), "cache": asdict(data.cache)}
        parts[name] = part | own | {"index_folder": data.index_folder}
    return parts


def problems(data: DataConfig) -> Iterator[str]:
    """Parts that cannot be read as parts."""
    for name, part in data.parts.items():
        key = f"data.mixture_paths.{name}"
        if part["exclude"] is not None:
            yield f"data.mixture names {name}, which sets data.exclude; name one list for the whole mixture instead"
        if part["kind"] == "mixture":
            yield f"data.mixture names {name}, which is a mixture itself; name its parts instead"
        elif part["path"] is None and part["kind"] != "scenes" and not part["_target_"]:
            get = (part["how_to_get"] or "write data.path=DIR").replace("data.path", key)
            yield f"{key} is not set and data={name} needs one; {get}"
        elif part["path"] is not None and part["kind"] == "scenes":
            yield f"{key}={part['path']} has no effect, since {name} has no path; leave it out"


def typed(settings: dict[str, Any]) -> DataConfig:
    """One of `data.parts` as a typed config."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), settings))
    assert isinstance(config, DataConfig)
    return config
