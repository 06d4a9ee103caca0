"""The files that a composition is made of: what in them does not fit the schema, and what they leave to the user.

Hydra stops at the first key that does not fit, and forgets a `???` that overrides a default; both are reported in full
by reading the files once more.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import MISSING, OmegaConf

from clip_lightning.config.identity import flatten
from clip_lightning.config.overrides import Grammar


def problems(config_name: str, settings: list[str], grammar: Grammar) -> list[str]:
    """A sentence for every key in the composed files that does not fit the schema.

    Raises:
        HydraException: the files cannot even be listed.
    """
    found = []
    for path, package, content in _files(config_name, settings, grammar.folders):
        if isinstance(content, dict):
            for key, value in content.items():
                found += grammar.key_problems(_below(package, str(key)), value, str(path))
        else:
            found.append(f"{path}: this file holds no keys with values")
    return found


def required(config_name: str, settings: list[str], choices: dict[str, Any], grammar: Grammar) -> set[str]:
    """The keys that a chosen file leaves open with `???` and no later file fills."""
    left: set[str] = set()
    chosen = [folder / group / f"{option}.yaml" for group, option in choices.items() for folder in grammar.folders]
    if not any(MISSING in path.read_text(encoding="utf-8") for path in chosen if path.is_file()):
        return left
    for _, package, content in _files(config_name, settings, grammar.folders):
        for key, value in flatten(content).items():
            (left.add if value == MISSING else left.discard)(_below(package, key))
    return left


def missing_problem(key: str) -> str:
    """The sentence about a key that no file and no setting gives a value."""
    return f"{key} has no value; write {key}=VALUE, or add it to the preset"


def search_path(folders: Sequence[Path]) -> list[str]:
    """The setting that makes Hydra look into a user's folders too."""
    listed = ",".join(f"'file://{folder}'" for folder in folders)
    return [f"hydra.searchpath=[{listed}]"] if folders else []


def _files(config_name: str, settings: list[str], folders: Sequence[Path]) -> Iterator[tuple[Path, str, Any]]:
    """Path, package and content of every composed file of this project or the user, the last one winning."""
    loader = GlobalHydra.instance().config_loader()
    for file in loader.compute_defaults_list(config_name, settings, RunMode.RUN).defaults:
        paths = [folder / f"{file.config_path}.yaml" for folder in folders]
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            if isinstance(content, dict):
                content = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
            yield path, file.package or "", content


def _below(package: str, key: str) -> str:
    return f"{package}.{key}" if package else key
