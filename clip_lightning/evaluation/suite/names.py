"""Class names and templates from where they are published: packages' data, the data set's own files, a user's file.

Packages are read as data: found without being imported, JSON as JSON, Python as a syntax tree of which only literals
are evaluated. Nothing of them is run.
"""

import ast
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from clip_lightning.errors import DataError
from clip_lightning.evaluation.prompts import PLACEHOLDER, read_lines, rewritten
from clip_lightning.evaluation.suite.entry import Entry
from clip_lightning.evaluation.suite.loaders.found import Found, same

NAMES_FILE, TEMPLATES_FILE, PROMPTS_MD = "classnames.txt", "templates.txt", "prompts.md"
_CLIP_BENCHMARK = "pip install clip-benchmark==1.6.2"


class Names(NamedTuple):
    """Class names in the order of the labels, templates, and where both were read from."""

    classnames: list[str]
    templates: list[str]
    names_from: str


class NamesNeededError(DataError):
    """No source has the class names or templates of a data set; the sentence says where to get them."""


def canonical_keys(entry: Entry) -> list[str] | None:
    """Identities of an entry's classes in the order of the labels; None where its loader knows them."""
    if isinstance(entry.keys, Mapping):
        if "range" in entry.keys:
            return [str(number) for number in range(int(entry.keys["range"]))]
        return timm_list(entry.keys["timm"])
    return None if entry.keys is None else [str(key) for key in entry.keys]


def names_of(entry: Entry, found: Found, root: Path) -> Names:
    """Names and templates of a data set that is on disk.

    A user's files (`ROOT/NAME/classnames.txt`, `templates.txt`) come first, then what the folder that was opened holds
    (CLIP_benchmark's layout), then OpenAI's prompts.md where it is in the root, then the entry's sources in order.

    Raises: NamesNeededError, DataError where a user's file does not match the labels.
    """
    classnames, names_from = _classnames(entry, found, root)
    templates, templates_from = _templates(entry, found, root)
    return Names(
        classnames, templates, names_from if names_from == templates_from else f"{names_from}; {templates_from}"
    )


def _classnames(entry: Entry, found: Found, root: Path) -> tuple[list[str], str]:
    file = root / entry.name / NAMES_FILE
    if file.is_file():
        return _matching(read_names(file), found.keys, str(file)), f"names: {file}"
    if found.templates and found.names:
        return list(found.names), "names: the data set's folder"
    base, where = None, ""
    reasons = []
    for source in entry.names:
        try:
            base, where = _from(source, entry, found)
            break
        except (NamesNeededError, DataError) as error:
            reasons += error.problems
    if base is None and found.names:
        base, where = list(found.names), "the data set's own files"
    paper = _paper(entry, root)
    ordered = None if paper is None else _same_names(paper.classnames, base)
    if ordered is not None:
        return ordered, f"names: {root / PROMPTS_MD}"
    if base is None:
        advice = f"write one class name per line, in the order of the labels, to {file}"
        raise NamesNeededError(
            f"{entry.name}: class names needed; {advice}{', or ' if reasons else ''}{'; '.join(reasons)}."
        )
    return base, f"names: {where}"


def _templates(entry: Entry, found: Found, root: Path) -> tuple[list[str], str]:
    file = root / entry.name / TEMPLATES_FILE
    if file.is_file():
        return [rewritten(line) for line in read_lines(file) if line], f"templates: {file}"
    if found.templates:
        return list(found.templates), "templates: the data set's folder"
    if (paper := _paper(entry, root)) is not None:
        return paper.templates, f"templates: {root / PROMPTS_MD}"
    for source in entry.templates:
        (kind, value), *_ = source.items()
        try:
            if kind == "list":
                return [rewritten(text) for text in value], source.get("source", "templates: the entry's list")
            if kind == "clip_benchmark":
                return [rewritten(text) for text in clip_benchmark("zeroshot_classification_templates")[value]], (
                    "templates: clip-benchmark"
                )
            return open_clip_templates(value), "templates: open_clip_torch"
        except NamesNeededError:
            continue
    return [entry.single], "templates: Figure 21 of Radford et al. 2021"


def _from(source: Mapping[str, Any], entry: Entry, found: Found) -> tuple[list[str], str]:
    """Names of one source of an entry, in the order of the found keys."""
    kind = next(iter(source))
    value = source[kind]
    if kind == "own":
        if not found.names:
            raise NamesNeededError(str(value))
        return list(found.names), "the data set's own files"
    if not found.keys:
        raise NamesNeededError("the files have numbers for labels and no names")
    if kind == "keys":
        if all(key.isdecimal() for key in found.keys) and canonical_keys(entry) is None:
            raise NamesNeededError("the files have numbers for labels and no names")
        return [FROM_KEY[value](key) for key in found.keys], "the data set's class keys"
    if kind == "map":
        return _matching({same(str(key)): name for key, name in value.items()}, found.keys, f"{entry.name}.yaml"), (
            "the registry's entry"
        )
    if kind == "open_clip":
        by_key = dict(zip(timm_list("imagenet_synsets.txt"), open_clip_classnames(value), strict=True))
        return _matching({same(key): name for key, name in by_key.items()}, found.keys, kind), "open_clip_torch"
    names = clip_benchmark("classnames")[value] if kind == "clip_benchmark" else value
    where = "clip-benchmark" if kind == "clip_benchmark" else "the registry's entry"
    keys = canonical_keys(entry)
    if keys is None or source.get("match") == "name":
        keys = [str(name) for name in names]
    if len(keys) != len(names):
        raise DataError(f"{where} has {len(names)} names for the {len(keys)} classes of {entry.name}")
    by_name = dict(zip([same(key) for key in keys], [str(name) for name in names], strict=True))
    return _matching(by_name, found.keys, where), where


def _matching(names: Mapping[str, str] | Sequence[str], keys: Sequence[str], where: str) -> list[str]:
    """Names in the order of the keys: by key, or by position for a list as long as the keys."""
    if isinstance(names, Mapping):
        missing = [key for key in keys if same(key) not in names]
        if missing:
            raise DataError(f"{where} has no name for {len(missing)} of {len(keys)} classes, such as '{missing[0]}'")
        return [names[same(key)] for key in keys]
    if len(names) != len(keys) and len(keys):
        raise DataError(
            f"{where} has {len(names)} class names and the data set has {len(keys)} classes; write one name per line, "
            "in the order of the labels."
        )
    return list(names)


def _same_names(names: Sequence[str], base: Sequence[str] | None) -> list[str] | None:
    """The names of prompts.md in the order of the labels; None where they are not the same set of classes."""
    if base is None:
        return None  # the file's order is not that of the labels for all sets
    by_name = {same(name): name for name in names}
    if {same(name) for name in base} != set(by_name):
        return None
    return [by_name[same(name)] for name in base]


def read_names(path: Path) -> list[str] | dict[str, str]:
    """A user's class names: a name per line in the order of the labels, or `key<TAB>name` lines in any order.

    Raises: DataError.
    """
    lines = read_lines(path)
    if lines and all("\t" in line for line in lines):
        return {same(key): name for key, name in (line.split("\t", 1) for line in lines)}
    return lines


FROM_KEY: Mapping[str, Callable[[str], str]] = {
    "as_is": str,
    "words": lambda key: key.replace("_", " ").lower(),
    # the path /a/apartment_building/outdoor is apartment building outdoor
    "sun397": lambda key: re.sub(r"^/?\w/", "", key).replace("/", " ").replace("_", " "),
    # ApplyEyeMakeup is Apply Eye Makeup
    "camel_case": lambda key: " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|\d+", key)),
}


def _package(name: str, *parts: str) -> Path:
    """A file of an installed package, which is not imported. Raises NamesNeededError."""
    spec = importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = Path(folders[0], *parts) if folders else Path()
    if not folders or not path.is_file():
        advice = _CLIP_BENCHMARK if name == "clip_benchmark" else f"pip install {name}"
        raise NamesNeededError(f"install the package that has them: {advice}")
    return path


@cache
def clip_benchmark(kind: str) -> dict[str, list[str]]:
    """CLIP_benchmark's English `classnames` or `zeroshot_classification_templates` by name of the data set."""
    content = json.loads(_package("clip_benchmark", "datasets", f"en_{kind}.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


@cache
def timm_list(file: str) -> list[str]:
    """Lines of a list of timm's data: synsets in the order of the labels."""
    return read_lines(_package("timm", "data", "_info", file))


@cache
def _open_clip() -> dict[str, ast.expr]:
    """Values assigned in open_clip's file of ImageNet names and templates, as syntax trees."""
    path = _package("open_clip", "zero_shot_metadata.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def open_clip_classnames(name: str = "IMAGENET_CLASSNAMES") -> list[str]:
    """The 1,000 names that OpenAI edited, in the order of sorted synsets."""
    return list(ast.literal_eval(_open_clip()[name]))


def open_clip_templates(name: str) -> list[str]:
    """Templates that open_clip writes as lambdas `lambda c: f'a photo of a {c}.'`: taken from the syntax tree."""
    value = _open_clip()[name]
    assert isinstance(value, ast.Tuple | ast.List)
    return [_template(node) for node in value.elts]


def _template(node: ast.expr) -> str:
    if not isinstance(node, ast.Lambda) or not isinstance(node.body, ast.JoinedStr):
        raise NamesNeededError(
            "open_clip_torch's templates are not the lambdas that 3.3.0 has: pip install open_clip_torch==3.3.0"
        )
    parts = []
    for part in node.body.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        elif isinstance(part, ast.FormattedValue) and ast.unparse(part.value) == node.args.args[0].arg:
            parts.append(PLACEHOLDER)
        else:
            raise NamesNeededError(
                "open_clip_torch's templates hold more than a class name: pip install open_clip_torch==3.3.0"
            )
    return "".join(parts)


def further_prompts(entry: Entry, names: Names) -> dict[str, list[str]]:
    """Sets of templates beside the own ones: the bare name, the one of Figure 21, and ImageNet's seven.

    `contextless` and `single` are the two baselines of Figure 4 of Radford et al. 2021; `seven` is the subset that
    OpenAI's notebook selected for ImageNet.
    """
    sets = {"contextless": [PLACEHOLDER], "single": [entry.single]}
    if any("open_clip" in source for source in entry.templates) and "open_clip" in names.names_from:
        sets["seven"] = open_clip_templates("SIMPLE_IMAGENET_TEMPLATES")
    return sets


def imagenet_names() -> Names:
    """ImageNet's 1,000 names and 80 templates."""
    return Names(
        open_clip_classnames(), open_clip_templates("OPENAI_IMAGENET_TEMPLATES"), "names and templates: open_clip_torch"
    )


class Section(NamedTuple):
    """One data set of OpenAI's prompts.md; of classes with several names the first is taken."""

    classnames: list[str]
    templates: list[str]


def _paper(entry: Entry, root: Path) -> Section | None:
    file = root / PROMPTS_MD
    return read_prompts_md(file).get(entry.prompts_md) if entry.prompts_md and file.is_file() else None


@cache
def read_prompts_md(path: Path) -> dict[str, Section]:
    """Sections of OpenAI's data/prompts.md: two Python lists each, of which only the literals are read.

    Raises: DataError.
    """
    text = path.read_text(encoding="utf-8-sig")
    sections = {}
    for title, block in re.findall(r"^## (\S+)\s*```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        try:
            tree = ast.parse(block)
            values = {
                node.targets[0].id: ast.literal_eval(node.value)
                for node in tree.body
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            }
            names = [name if isinstance(name, str) else name[0] for name in values["classes"]]
            sections[title] = Section(names, [rewritten(template) for template in values["templates"]])
        except (SyntaxError, ValueError, KeyError) as error:
            raise DataError(
                f"{path}: the section {title} is not of OpenAI's format ({error}); copy the file again."
            ) from error
    return sections
