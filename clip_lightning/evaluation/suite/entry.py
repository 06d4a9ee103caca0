"""Entries of the registry: what one YAML file of `suite/sets` says about a data set.

docs/evaluation.md lists the keys. An entry names where the set may be on disk (`sources`, tried in order), where its
class names and templates are published, and what is known about its size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from clip_lightning.errors import UserError

SETS = Path(__file__).parent / "sets"


@dataclass(frozen=True)
class Source:
    """One way in which a data set may be on disk.

    Attributes:
        loader: key of `loaders.LOADERS`.
        split: which images these are: paper, vtab, wds, torchvision, hub, user.
        at: folders, or patterns of them, relative to the root or to the folder of the set's name in it; "." is that
            folder itself.
        needs: files or folders in it, without which this source is absent.
        images: how many images this split has; None where that is unknown.
        stand_in: one sentence that says why this is not the set of the paper; empty where it is.
        options: keywords of the loader.
    """

    loader: str
    split: str
    at: tuple[str, ...] = (".",)
    needs: tuple[str, ...] = ()
    images: int | None = None
    stand_in: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One data set.

    Attributes:
        name: of the task and of the file.
        title: as papers write it.
        classes: how many.
        metric: a key of `evaluation.metrics.METRICS`.
        get: one sentence: how to get the data set.
        licence: its terms, as its authors state them; empty where none were found.
        agreement: whether a person has to accept terms or to register before the download.
        keys: identities of the classes in the data set's files (folder names, codes), in the order of the labels; a
            list, `{timm: FILE}`, or `{range: C}` for the numbers 0 .. C - 1; None where the loader knows them.
        names: where class names come from, tried in order (`names.py`).
        templates: where templates come from, tried in order.
        single: the set's one prompt in Figure 21 of Radford et al. 2021.
        prompts_md: the section of OpenAI's prompts.md.
        sources: tried in order, the first that is present is opened.
        wds: names in CLIP_benchmark's webdataset layout, with the size and the split there.
        hub: names of copies on the Hugging Face hub, whose parquet files are read.
        stand_in: as in `Source`, for all sources.
        images_of: the entry that has the same images, where it is another one.
    """

    name: str
    title: str
    classes: int
    metric: str
    get: str
    licence: str = ""
    agreement: bool = False
    keys: Sequence[str] | Mapping[str, str] | None = None
    names: Sequence[Mapping[str, Any]] = ()
    templates: Sequence[Mapping[str, Any]] = ()
    single: str = "a photo of a {c}."
    prompts_md: str = ""
    sources: Sequence[Source] = ()
    wds: Mapping[str, Any] = field(default_factory=dict)
    hub: Sequence[str] = ()
    stand_in: str = ""
    images_of: str = ""

    @property
    def all_sources(self) -> list[Source]:
        """The official layouts, then the common ones that any set may be in."""
        return [*self.sources, *_wds_sources(self), *_hub_sources(self), *_user_sources(self)]


@cache
def entry_names() -> tuple[str, ...]:
    """Names of all entries, sorted."""
    return tuple(sorted(path.stem for path in SETS.glob("*.yaml")))


def is_entry(name: str, root: Path) -> bool:
    """Whether there is an entry of this name: in the package, or a user's `ROOT/NAME.yaml`."""
    return name in entry_names() or (root / f"{name}.yaml").is_file()


def find_entry(name: str, root: Path) -> Entry:
    """The entry of this name; a user's `ROOT/NAME.yaml` is taken before the package's."""
    file = root / f"{name}.yaml"
    return parse_entry(name, file.read_text(encoding="utf-8-sig")) if file.is_file() else load_entry(name)


@cache
def load_entry(name: str) -> Entry:
    """The package's entry of this name."""
    return parse_entry(name, (SETS / f"{name}.yaml").read_text(encoding="utf-8"))


def parse_entry(name: str, text: str) -> Entry:
    """An entry from the text of its file. Raises UserError where a key is unknown or missing."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{name}.yaml is not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{name}.yaml must hold keys with values, such as title: {name}.")
    known = {one.name for one in fields(Entry)} - {"name"}
    if unknown := content.keys() - known:
        raise UserError(f"{name}.yaml: unknown key {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}.")
    if missing := {"title", "classes", "metric", "get"} - content.keys():
        raise UserError(f"{name}.yaml: {', '.join(sorted(missing))} is missing.")
    content["sources"] = tuple(_source(one) for one in content.get("sources", ()))
    return Entry(name, **content)


def _source(content: dict[str, Any]) -> Source:
    """Keys that `Source` does not have are options of the loader."""
    own = {one.name for one in fields(Source)} - {"options"}
    given = {key: value for key, value in content.items() if key in own}
    for key in ("at", "needs"):
        if key in given:
            given[key] = tuple(given[key])
    return Source(**given, options={key: value for key, value in content.items() if key not in own})


def _wds_sources(entry: Entry) -> list[Source]:
    """CLIP_benchmark's folders: wds_NAME, as on the hub, wds_NAME_test, as DataComp has them, or the set's own name."""
    names = [name.replace("/", "-").removeprefix("fairness-") for name in entry.wds.get("names", ())]
    folders = [folder for name in names for folder in (f"wds_{name}", f"wds_{name}_test", name)]
    for name in names:  # copies of the hub's repositories, and the hub's cache
        for owner, folder in (("clip-benchmark", f"wds_{name}"), ("djghosh", f"wds_{name}_test")):
            folders += [f"{owner}/{folder}", f"datasets--{owner}--{folder}/snapshots/*"]
    folders += [] if names else [f"wds_{entry.name}"]
    known = ("names", "images", "split", "stand_in", "needs")
    return [
        Source(
            "wds",
            entry.wds.get("split", "wds"),
            (*dict.fromkeys([*folders, "."]),),
            ("test/0.tar", *entry.wds.get("needs", ())),
            entry.wds.get("images"),
            entry.wds.get("stand_in", ""),
            {key: value for key, value in entry.wds.items() if key not in known},
        )
    ]


def _hub_sources(entry: Entry) -> list[Source]:
    """Parquet files of a copy from the hub, or of the hub's cache; a test split is taken before a validation split."""
    folders = [
        folder
        for repository in entry.hub
        for folder in (repository, repository.replace("/", "--"), f"datasets--{repository.replace('/', '--')}")
    ]
    patterns = [
        f"{place}{split}*.parquet"
        for split in ("test", "val")
        for place in ("", "data/", "*/", "snapshots/*/", "snapshots/*/data/", "snapshots/*/*/")
    ]
    return [Source("parquet", "hub", (*folders, "."), ("|".join(patterns),), options={"patterns": patterns})]


def _user_sources(entry: Entry) -> list[Source]:
    """A list that a person wrote, or a folder per class below `test`."""
    sources = [Source("table", "user", needs=("test.csv",), options={"file": "test.csv"})]
    return [*sources, Source("folders", "user", needs=("test/*/*.*",), options={"images_at": "test"})]
