"""The interface of every kind of data: the number of its samples, how they are grouped into shards, and sample k.

A sample id counts through the shards in the order of `shard_sizes`: shard 0 holds ids 0 .. size - 1, and so on. What
is damaged is raised as `BadSample` by the read (the run replaces and counts it), or listed in `problems` if the index
found it (such samples have no id). A user's own kind of data is a subclass of `Layout`, named by
`data._target_` and called with the data config and `data.options`.
"""

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clip_lightning.config.schema import DataConfig
from clip_lightning.errors import DataError
from clip_lightning.targets import resolve_target

Ids = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class RawSample(NamedTuple):
    """One image, encoded as in its file or as uint8 [H, W, 3], with all its captions (at least one)."""

    image: bytes | Pixels
    captions: list[str]


class Problem(NamedTuple):
    """Something that is left out.

    Attributes:
        shard: the file it is in.
        name: its name in that file; empty where the file itself is damaged.
        cause: a short fixed phrase, by which problems are counted.
        num: samples that are lost; 0 for files that were probably never samples.
        hint: what was found instead, and the key that would read it.
    """

    shard: str
    name: str
    cause: str
    num: int = 1
    hint: str = ""

    @property
    def is_damage(self) -> bool:
        """Whether a fresh copy of the file can help."""
        return self.cause.startswith(("damaged", "truncated", "empty image", "empty shard"))


class ProblemList(Sequence[Problem], ABC):
    """Problems that are counted without being held in memory."""

    @abstractmethod
    def lost_by_cause(self) -> Counter[str]:
        """Lost samples by cause."""

    @abstractmethod
    def of_shards(self) -> list[Problem]:
        """The problems that concern a whole shard."""

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


class JoinedProblems(ProblemList):
    """The problems of several parts, one part after the other."""

    def __init__(self, parts: Sequence[Sequence[Problem]]) -> None:
        """Args: parts: lists of problems."""
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Problem]:
        return chain.from_iterable(self.parts)

    def lost_by_cause(self) -> Counter[str]:
        """Lost samples by cause."""
        return sum((lost_by_cause(part) for part in self.parts), Counter())

    def of_shards(self) -> list[Problem]:
        """The problems that concern a whole shard."""
        return [problem for part in self.parts for problem in of_shards(part)]


class BadSample(Exception):  # noqa: N818 - it is returned as often as it is raised
    """One damaged sample; `cause` is a short fixed phrase that is counted, `detail` is the decoder's message."""

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(cause, detail)
        self.cause, self.detail = cause, detail


class Layout(ABC):
    """One kind of data.

    Attributes:
        num_samples: samples that can be read, ids 0 .. num_samples - 1.
        shard_sizes: int64 [shards], samples of each; sums to num_samples. A reader that has no files gives one shard.
        problems: what the index left out.
        remote: True where shards come through a cache and are worth fetching ahead.
        window_shards: shards mixed at a time where `data.window_shards` is null; None is all.
        largest_download: bytes of the largest shard that is downloaded or unpacked.
    """

    num_samples: int
    shard_sizes: Ids
    problems: Sequence[Problem] = ()
    remote: bool = False
    window_shards: int | None = None
    largest_download: int = 0

    @abstractmethod
    def read(self, sample_id: int) -> RawSample:
        """Sample `sample_id`; the same bytes every time. Raises `BadSample` where it is damaged."""

    def read_many(self, sample_ids: Ids) -> list[RawSample | BadSample]:
        """The samples of int64 [n], damaged ones as the `BadSample` that `read` raises."""
        samples: list[RawSample | BadSample] = []
        for sample_id in sample_ids.tolist():
            try:
                samples.append(self.read(sample_id))
            except BadSample as bad:
                samples.append(bad)
        return samples

    def captions(self, sample_id: int) -> list[str]:
        """Only the captions of a sample, for readers that can do without its image."""
        return self.read(sample_id).captions

    def readable_captions(self, sample_id: int) -> list[str]:
        """The captions of a sample, none where it is damaged."""
        try:
            return self.captions(sample_id)
        except BadSample:
            return []

    def name_of(self, sample_id: int) -> Problem:
        """The file and the name of sample `sample_id`, for messages; the cause is empty."""
        return Problem("", f"sample {sample_id}", "")

    def shard_of(self, sample_id: int) -> str:
        """The name of a sample's shard, for messages; no shard is read for it."""
        return f"shard {int(np.searchsorted(np.cumsum(self.shard_sizes), sample_id, side='right'))}"

    def newest_download(self) -> float:
        """When the cache of remote shards last grew, in seconds since 1970; 0 without one."""
        return 0.0

    def fingerprint(self) -> str:
        """16 hex digits that change when the data changes; the same on every node."""
        return digest(type(self).__name__, self.shard_sizes.tobytes())

    def prefetch(self, shard: int) -> None:  # noqa: B027 - only remote layouts have something to do
        """Fetches a shard before it is needed; may be called from a thread."""


def digest(*parts: str | bytes) -> str:
    """16 hex digits of the SHA-256 of the parts."""
    state = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        state.update(len(content).to_bytes(8, "little") + content)
    return state.hexdigest()[:16]


def in_sub_folders(path: str, suffix: str) -> list[Problem]:
    """The files in sub-folders that are left out because the folder has files of that suffix itself."""
    folder = Path(path).expanduser().absolute()
    if "://" in path or not folder.is_dir() or not any(folder.glob(f"*{suffix}")):
        return []
    names = [str(found.relative_to(folder)) for found in sorted(folder.glob(f"*/*{suffix}"))]
    hint = f"write data.path={folder}/*/*{suffix} to read them"
    return [Problem(str(folder), name, "file in a sub-folder", 0, hint) for name in names]


def build_layout(config: DataConfig, folder: str | None = None) -> Layout:
    """The layout that `config` names, indexed and ready to read.

    Args:
        folder: another path than `config.path`, read in the same way (held-out pairs).
    Raises: DataError where the data is missing or has no sample.
    """
    path = folder if folder is not None else config.path
    if folder is not None and config._target_ is None and config.kind in _WITHOUT_PATH:
        raise DataError(
            f"data.validation.path={folder}: data.kind={config.kind} reads no path; leave data.validation.path "
            "null, and pairs of the data are held out."
        )
    config = replace(config, path=path)
    if config._target_ is not None:
        layout = resolve_target(config._target_, "data._target_")(config, **config.options)
    elif config.kind in _BUILDERS:
        module, name = _BUILDERS[config.kind]
        builder: Callable[..., Layout] = getattr(importlib.import_module(f"clip_lightning.data.{module}"), name)
        layout = builder(config) if config.kind in _WITHOUT_PATH or path is None else builder(config, path)
    else:
        raise DataError(f"data.kind={config.kind} is not known; choose one of {', '.join(_BUILDERS)}.")
    if not isinstance(layout, Layout):
        raise DataError(
            f"data._target_={config._target_} does not return a clip_lightning.data.layouts.layout.Layout; subclass it."
        )
    if not layout.num_samples:
        found = f" ({causes(layout.problems)})" if layout.problems else ""
        raise DataError(f"data.path={path} holds no usable sample{found}.")
    return layout


_WITHOUT_PATH = ("scenes", "mixture")
_BUILDERS = {
    "scenes": ("scenes.scenes", "build_scenes"),
    "webdataset": ("layouts.tar", "build_tar"),
    "parquet": ("layouts.table", "build_arrow"),
    "table": ("layouts.text_table", "build_table"),
    "folder": ("layouts.folder", "build_folder"),
    "class_folders": ("layouts.class_folders", "build_class_folders"),
    "coco": ("layouts.folder", "build_coco"),
    "mixture": ("layouts.mixture", "build_mixture"),
}


def lost_by_cause(problems: Iterable[Problem]) -> Counter[str]:
    """Samples that the problems stand for, by cause."""
    if isinstance(problems, ProblemList):
        return problems.lost_by_cause()
    lost = Counter[str]()
    for problem in problems:
        lost[problem.cause] += problem.num
    return lost


def num_lost(problems: Iterable[Problem]) -> int:
    """The number of samples that are lost."""
    return lost_by_cause(problems).total()


def of_shards(problems: Iterable[Problem]) -> list[Problem]:
    """The problems that concern a whole shard."""
    return problems.of_shards() if isinstance(problems, ProblemList) else [one for one in problems if not one.name]


def causes(problems: Iterable[Problem]) -> str:
    """Lost samples counted by cause, the most frequent first, each with the first hint, as a phrase.

    Causes without lost samples come last, with the number of their files.
    """
    lost, files, hints = Counter[str](), Counter[str](), dict[str, str]()
    for problem in problems:
        lost[problem.cause] += problem.num
        files[problem.cause] += 1
        if problem.hint:
            hints.setdefault(problem.cause, problem.hint)
    phrases = []
    for cause, count in lost.most_common():
        number = f"{count:,}" if count else f"{files[cause]:,} files, no samples"
        phrases.append(f"{cause}: {number}" + (f" ({hints[cause]})" if cause in hints else ""))
    return ", ".join(phrases)


def damaged_shards(problems: Iterable[Problem], most: int = 3) -> list[str]:
    """A phrase for each shard that cannot be read to its end, with its lost samples; the largest losses first."""
    shards = sorted((one for one in of_shards(problems) if one.num), key=lambda one: -one.num)
    phrases = [f"{one.shard}: {one.cause}, about {one.num:,} samples lost" for one in shards[:most]]
    return phrases + ([f"and {len(shards) - most:,} more shards"] if len(shards) > most else [])
