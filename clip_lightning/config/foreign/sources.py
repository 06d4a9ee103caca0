"""Where a model comes from, `model.pretrained=SOURCE`: which files, in which layout, of which architecture.

A source is a file, a folder (of a run, of an export, of open_clip, transformers or timm), `hf-hub:NAME`,
`openai:NAME` or `open_clip:NAME/TAG`. Imports no torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from clip_lightning.config.foreign import archive, open_clip, openai, transformers
from clip_lightning.config.frozen import parse
from clip_lightning.config.keys import did_you_mean, near
from clip_lightning.config.schema import Config, ModelConfig
from clip_lightning.errors import UserError

OPEN_CLIP_CONFIG, CONFIG, PREPROCESSOR, OWN_CONFIG = (
    "open_clip_config.json",
    "config.json",
    "preprocessor_config.json",
    "config.yaml",
)
# In the order in which open_clip, transformers and timm look for them; safetensors first.
_WEIGHTS = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "model.pth",
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
FORMS = "a file, a folder, hf-hub:NAME, openai:ViT-B/32, open_clip:ViT-B-32/laion2b_s34b_b79k"


@dataclass(frozen=True)
class Source:
    """The files of a model.

    Attributes:
        name: as the user wrote it.
        kind: run, own (an export of ours), open_clip, transformers, timm, archive (TorchScript), file.
        folder: where its files are; None of a single file without a configuration beside it.
        weights: one file, or the shards of transformers' index; empty of a run, whose checkpoint holds them.
        config: content of its configuration, for open_clip with what the registry of weights adds.
        preprocess: content of preprocessor_config.json or open_clip's `preprocess_cfg`.
    """

    name: str
    kind: str
    folder: Path | None
    weights: tuple[Path, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> str | None:
        """The folder, where it holds a Hugging Face tokenizer."""
        if self.folder is None or not any((self.folder / name).is_file() for name in _TOKENIZER_FILES):
            return None
        return str(self.folder)


def find(source: str) -> Source:
    """The files of a source; a name of the hub or of a registry is fetched, or taken from the cache.

    Raises:
        UserError: there is no such file, or it holds no model; the sentence has the forms of a source.
    """
    if source.startswith(("openai:", "open_clip:")):
        return _of_registry(source)
    if source.startswith("hf-hub:"):
        return replace(_in_folder(_fetch(source.removeprefix("hf-hub:")), source), name=source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path, source)
    if path.is_file():
        return _file(path, source)
    raise UserError(f"model.pretrained={source} is neither a file nor a folder; write {FORMS}")


def architecture(source: Source) -> ModelConfig:
    """The configuration of a source's model; its tokenizer is named by the source's own files.

    Raises:
        UserError: the files leave it open, or it cannot be expressed here.
    """
    try:
        return _architecture(source)
    except UserError as error:
        raise UserError(*(f"model.pretrained={source.name}: {problem}" for problem in error.problems)) from error


def own_config(source: Source) -> Config:
    """The config of a run or an export of this project. Raises UserError where it names code to import."""
    assert source.folder is not None
    path = source.folder / OWN_CONFIG
    try:
        config: Config = parse(path.read_text(encoding="utf-8"), Config, source=str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    for tower in (config.model.vision, config.model.text):
        if tower._target_ is not None:
            raise UserError(
                f"{path} names {tower._target_}, which would be imported; only towers of timm and "
                "transformers are read from a folder"
            )
    return config


def _architecture(source: Source) -> ModelConfig:
    if source.kind == "own" or source.kind == "run":
        return own_config(source).model
    if source.kind == "open_clip":
        return open_clip.read(source.config, source.preprocess, source.tokenizer)
    if source.kind == "transformers":
        return transformers.read(source.config, source.preprocess, source.tokenizer)
    if source.kind == "archive":
        tensors = archive.stored_tensors(source.weights[0])
        published = {"input_resolution", "context_length", "vocab_size"} <= tensors.keys()
        return openai.read(
            {name: stored.shape for name, stored in tensors.items()}, "quick_gelu" if published else None
        )
    if source.kind == "timm":
        raise UserError(
            "timm's folder holds an image tower alone; choose a model, and set model.vision.pretrained to it"
        )
    return openai.read({}, None)


def registry_names() -> list[str]:
    """The short names that `find` takes: one for each entry of open_clip's registry of weights."""
    from open_clip.pretrained import list_pretrained

    return [f"openai:{model}" if tag == "openai" else f"open_clip:{model}/{tag}" for model, tag in list_pretrained()]


@cache
def open_clip_configs() -> dict[str, dict[str, Any]]:
    """The model configurations that open_clip_torch carries, by name."""
    try:
        folder = Path(str(distribution("open_clip_torch").locate_file("open_clip/model_configs")))
    except PackageNotFoundError as error:
        raise UserError(
            "the package open_clip_torch, which lists these models, is not installed; run make setup"
        ) from error
    return {path.stem: _json(path) for path in sorted(folder.glob("*.json"))}


def _of_registry(source: str) -> Source:
    library, _, rest = source.partition(":")
    name, _, tag = (f"{rest.replace('/', '-')}/openai" if library == "openai" else rest).rpartition("/")
    configs = open_clip_configs()
    if name not in configs:
        raise UserError(
            f"model.pretrained={source}: there is no model {name}" + did_you_mean(near(name, list(configs)))
        )
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    entry = get_pretrained_cfg(name, tag)
    if not entry:
        known = list_pretrained_tags_by_model(name)
        raise UserError(f"model.pretrained={source}: {name} has no weights {tag}; it has {', '.join(known) or 'none'}")
    try:
        path = Path(download_pretrained(entry))
    except Exception as error:  # of urllib, of the hub's client, or of a checksum
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"model.pretrained={source} cannot be fetched ({reason}); check the network") from error
    config = configs[name] | {"quick_gelu": bool(entry.get("quick_gelu"))}
    return Source(source, "open_clip", None, (path,), config, entry)


def _fetch(name: str) -> Path:
    """The folder of a repository of the hub, with configurations, tokenizer and weights; never its code."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "open_clip_pytorch_model.bin"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*.py", "*/*"]))
    except Exception as error:  # the hub's client raises classes of several libraries
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"model.pretrained=hf-hub:{name} cannot be fetched ({reason}); check the name, the network"
        ) from error


def _in_folder(folder: Path, source: str) -> Source:
    if (folder / "checkpoints").is_dir() and (folder / OWN_CONFIG).is_file():
        return Source(source, "run", folder, ())
    weights = _weights(folder, source)
    if (folder / OWN_CONFIG).is_file():
        return Source(source, "own", folder, weights)
    if (folder / OPEN_CLIP_CONFIG).is_file():
        content = _json(folder / OPEN_CLIP_CONFIG)
        return Source(
            source, "open_clip", folder, weights, content.get("model_cfg", content), content.get("preprocess_cfg", {})
        )
    if (folder / CONFIG).is_file():
        content = _json(folder / CONFIG)
        preprocess = _json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
        kind = "timm" if "architecture" in content and "model_type" not in content else "transformers"
        return Source(source, kind, folder, weights, content, preprocess)
    names = f"{OPEN_CLIP_CONFIG}, {CONFIG} and {OWN_CONFIG}"
    raise UserError(f"model.pretrained={source}: the folder has none of {names}; write {FORMS}")


def _weights(folder: Path, source: str) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return tuple(folder / Path(name).name for name in sorted(set(_json(index)["weight_map"].values())))
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return (folder / name,)
    raise UserError(f"model.pretrained={source}: the folder has no weights; known names are {', '.join(_WEIGHTS)}")


def _file(path: Path, source: str) -> Source:
    """A file of weights, with the configuration beside it where there is one."""
    if archive.is_archive(path):
        return Source(source, "archive", None, (path,))
    for name in (OPEN_CLIP_CONFIG, CONFIG, OWN_CONFIG):
        if (path.parent / name).is_file() and path.name in _WEIGHTS:
            return replace(_in_folder(path.parent, source), weights=(path,))
    return Source(source, "file", None, (path,))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content
