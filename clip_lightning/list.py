"""What can be chosen: `python -m clip_lightning.list [models|data|compute|...|tasks|pretrained] [PART_OF_A_NAME]`."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from clip_lightning.errors import UserError, run_command

_NAMES = {"models": "model", "vision": "model/vision", "text": "model/text", "experiments": "experiment"}
_GROUPS = (
    "data",
    "compute",
    "cluster",
    "loss",
    "optimizer",
    "eval",
    "scale",
    "callbacks",
    "logger",
    "trainer",
    "debug",
)
KINDS = (*_NAMES, *_GROUPS, "tasks", "pretrained")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clip_lightning.list", description="List what can be chosen, with a line about each."
    )
    parser.add_argument(
        "kind", nargs="?", choices=KINDS, metavar="KIND", help=", ".join(KINDS) + "; default: a summary"
    )
    parser.add_argument("part", nargs="?", default="", metavar="PART", help="only names that contain this")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with options of your own, as of train.py")
    arguments = parser.parse_args(argv)
    folders = [Path(arguments.config_dir).expanduser()] if arguments.config_dir else []
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise UserError(f"--config-dir={missing[0]} is not a folder")
    if arguments.kind is None:
        for kind in KINDS:
            # open_clip, which knows these names, imports torch: too long to wait for a number.
            number = "" if kind == "pretrained" else f"{len(entries(kind, folders)):,}"
            print(f"{kind:12s} {number:>5s}   python -m clip_lightning.list {kind}")
        return 0
    found = {name: line for name, line in entries(arguments.kind, folders).items() if arguments.part in name}
    if not found:
        raise UserError(f"no name among {arguments.kind} contains '{arguments.part}'; leave it out to see all")
    width = max(map(len, found))
    for name, line in found.items():
        print(f"{name:{width}s}  {line}".rstrip())
    return 0


def entries(kind: str, folders: Iterable[Path] = ()) -> dict[str, str]:
    """Each name of a kind and a line about it; options of `folders` beside those of this project."""
    if kind == "tasks":
        from clip_lightning.data.scenes import scenes, shifted
        from clip_lightning.evaluation.suite.entry import entry_names, load_entry

        drawn = dict.fromkeys((*scenes.TASKS, *shifted.SHIFTED_TASKS), "drawn scenes")
        return drawn | {name: load_entry(name).title for name in entry_names()}
    if kind == "pretrained":
        from clip_lightning.config.foreign.sources import registry_names

        return dict.fromkeys(registry_names(), "")
    from clip_lightning.config.compose import CONF

    group = _NAMES.get(kind, kind)
    files = [file for folder in (CONF, *folders) for file in sorted((folder / group).glob("*.yaml"))]
    return {file.stem: _about(file) for file in files if not file.stem.startswith("by_")}


def _about(file: Path) -> str:
    """The first line of an option's header."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = (line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line)
    return next(comments, "")


if __name__ == "__main__":
    run_command(main)
