"""Opens data sets of the registry from what is on disk, and reports what is there."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from clip_lightning.errors import DataError
from clip_lightning.evaluation.suite.entry import Entry, Source, find_entry
from clip_lightning.evaluation.suite.loaders import LOADERS
from clip_lightning.evaluation.suite.loaders.found import Found, MissingError
from clip_lightning.evaluation.suite.names import Names, NamesNeededError, canonical_keys, names_of

READY, MISSING, LICENCE, NAMES, BROKEN = "ready", "missing", "licence needed", "names needed", "broken"


@dataclass(frozen=True)
class Opened:
    """A data set that is on disk, with its prompts."""

    entry: Entry
    source: Source
    folder: Path
    found: Found
    names: Names

    @property
    def num_expected(self) -> int | None:
        """Images that this split has, as far as is known: by the entry, or by the data set's own list."""
        return self.found.num_listed if self.source.images is None else self.source.images

    @property
    def stand_in(self) -> str:
        """Why this is not the set of the paper; empty where it is."""
        return " ".join(text for text in (self.entry.stand_in, self.source.stand_in) if text)


class State(NamedTuple):
    """One line of the table of data sets.

    Attributes:
        status: ready, missing, licence needed, names needed or broken.
        sentence: how to get what is missing; empty where the set is ready.
    """

    name: str
    title: str
    status: str
    split: str = ""
    loader: str = ""
    metric: str = ""
    classes: int = 0
    images: int | None = None
    expected: int | None = None
    stand_in: str = ""
    names_from: str = ""
    sentence: str = ""


def open_set(name: str, root: Path) -> Opened:
    """The data set of this name below `root`.

    Raises: MissingError, NamesNeededError, DataError where what is there cannot be used.
    """
    entry = find_entry(name, root)
    first: DataError | None = None
    for source, folder in located(entry, root):
        try:
            found = _load(entry, source, folder)
        except DataError as error:  # lists may be there without the images, and the images in another layout
            first = first or error
            continue
        return Opened(entry, source, folder, found, names_of(entry, found, root))
    raise first or MissingError(f"{entry.title} ({name}) is not in {root}: {_how(entry, root)}")


def _load(entry: Entry, source: Source, folder: Path) -> Found:
    try:
        found = LOADERS[source.loader](folder, canonical_keys(entry), **source.options)
    except (OSError, KeyError, ValueError, TypeError, IndexError, AttributeError, StopIteration) as error:
        cause = f"{type(error).__name__}: {error}"
        raise DataError(f"{folder} is not in the layout of {entry.title} ({cause}); unpack it again.") from error
    if not len(found.labels):
        raise DataError(f"{folder}: the {source.split} split of {entry.title} is empty; unpack it again.")
    return found


def located(entry: Entry, root: Path) -> Iterator[tuple[Source, Path]]:
    """Sources that are present, with their folder, the official layouts first."""
    for source in entry.all_sources:
        for folder in _folders(entry, source, root):
            if folder.is_dir() and all(_has(folder, need) for need in source.needs):
                yield source, folder


def _folders(entry: Entry, source: Source, root: Path) -> list[Path]:
    own = root / entry.name
    found: list[Path] = []
    for at in source.at:
        if "*" in at:
            found += sorted(root.glob(at))
        else:
            found += [own] if at == "." else [root / at, own / at]
    return list(dict.fromkeys(found))


def _has(folder: Path, need: str) -> bool:
    """Whether one of the alternatives `a|b|c`, which may be patterns, is in the folder."""
    return any(
        next(folder.glob(one), None) is not None if "*" in one else (folder / one).exists() for one in need.split("|")
    )


def _how(entry: Entry, root: Path) -> str:
    """One sentence: what is incomplete on disk, or how to get the set."""
    for source in entry.sources:
        for folder in _folders(entry, source, root):
            missing = [need for need in source.needs if not _has(folder, need)]
            if folder.is_dir() and source.needs and len(missing) < len(source.needs):
                return f"{folder} is there without {missing[0]}; {entry.get}"
    return entry.get


def state_of(name: str, root: Path, check: Callable[[Opened], object] = lambda _: None) -> State:
    """What is on disk of one data set. Raises nothing: what is wrong is in the sentence.

    Args: check: called with the opened set; raises DataError where it cannot be evaluated.
    """
    entry = find_entry(name, root)
    state = State(name, entry.title, READY, metric=entry.metric, classes=entry.classes, stand_in=entry.stand_in)
    try:
        opened = open_set(name, root)
        check(opened)
    except MissingError as error:
        status = LICENCE if entry.agreement else MISSING
        return state._replace(status=status, expected=_expected(entry), sentence=error.problems[0])
    except NamesNeededError as error:
        return state._replace(status=NAMES, expected=_expected(entry), sentence=error.problems[0])
    except DataError as error:
        return state._replace(status=BROKEN, expected=_expected(entry), sentence=error.problems[0])
    images, expected = len(opened.found.labels), opened.num_expected
    sentence = ""
    if expected is not None and images != expected:
        sentence = (
            f"{images:,} of {expected:,} images found; {entry.get}"
            if images < expected
            else (f"{images:,} images found, and the {opened.source.split} split has {expected:,}.")
        )
    return state._replace(
        split=opened.source.split,
        loader=opened.source.loader,
        classes=len(opened.names.classnames),
        images=images,
        expected=expected,
        stand_in=opened.stand_in,
        names_from=opened.names.names_from,
        sentence=sentence,
    )


def _expected(entry: Entry) -> int | None:
    return next((source.images for source in entry.all_sources if source.images is not None), None)


def print_states(states: Sequence[State], root: Path) -> None:
    """Prints a line per data set, the sentences of what is missing, and the counts by status."""
    print(f"data sets in {root}")
    rows = [("name", "status", "split", "layout", "metric", "classes", "images", "expected")]
    rows += [
        (
            state.name,
            state.status,
            state.split or "-",
            state.loader or "-",
            state.metric,
            f"{state.classes:,}",
            "-" if state.images is None else f"{state.images:,}",
            "?" if state.expected is None else f"{state.expected:,}",
        )
        for state in states
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for state in states:
        if state.sentence:
            print(f"{state.name}: {state.sentence.removesuffix('.')}.")
    for state in states:
        if state.status == READY and state.stand_in:
            print(f"{state.name} (stand-in): {state.stand_in}")
    counts = Counter(state.status for state in states)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))


def print_terms(states: Sequence[State], root: Path) -> None:
    """Prints where each data set's names come from, its licence and how to get it."""
    for state in states:
        entry = find_entry(state.name, root)
        print(f"{state.name}: {entry.title}")
        print(f"  names    {state.names_from or 'not read'}")
        print(f"  licence  {entry.licence or 'none was found'}{' (to be accepted first)' if entry.agreement else ''}")
        print(f"  get      {entry.get}")
