"""The flags of train.py and evaluate.py, their help page, and the points of a sweep.

Flags are spelled as in Hydra, so that known commands keep working; what is not handled here is passed to Hydra.
"""

import itertools
import textwrap
from argparse import SUPPRESS, ArgumentParser, HelpFormatter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, NoReturn

from hydra.core.override_parser.types import Override

from clip_lightning.config import keys
from clip_lightning.config.overrides import PLACEHOLDERS
from clip_lightning.config.schema import EvaluateConfig
from clip_lightning.errors import UserError

_ABOUT = {
    "train": ("train.py trains a CLIP model; settings are key=value.", "python train.py"),
    "evaluate": ("evaluate.py measures a run's checkpoint; settings are key=value.", "python evaluate.py"),
}
_EXAMPLES = {
    "train": (
        ("", "the embedded default, in minutes on a CPU"),
        ("model=vit_b32 data=cc12m compute=openclip_cc12m", "a named model, data set and recipe"),
        ("compute.learning_rate=1e-3 cluster=ddp cluster.devices=8", "other values, other machine"),
        ("-m model=vit_b32,vit_b16 compute.seed=0,1", "a sweep: one run each"),
        ("-m hydra/launcher=slurm compute.seed=0,1", "the sweep as an array of SLURM jobs; without -m one job"),
        ("model=vit_l14 data=yfcc --cfg job", "print the whole config and stop"),
        ("model=vit_l14 data=yfcc dry_run=true", "check, count and stop"),
    ),
    "evaluate": (
        ("run=runs/latest", "the newest run on its own tasks"),
        ("run=runs/latest eval.folders=[DIR]", "on a folder in CLIP_benchmark's layout"),
    ),
}


LAUNCHER = "hydra/launcher=slurm"


class Flags(NamedTuple):
    """The flags of a command; `hydra_arguments` are those that only Hydra answers."""

    help: bool
    multirun: bool
    cfg: str | None
    package: str | None
    config_dirs: list[Path]
    frozen: Path | None
    hydra_arguments: list[str]


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help shows the flags")


def split(argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """Separates the flags of a command line from its settings.

    Raises:
        UserError: a flag without its value, or a folder of --config-dir that does not exist.
    """
    found, words = _parser().parse_known_args(list(argv))
    folders = [Path(folder).absolute() for folder in found.config_dir]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise UserError(*(f"--config-dir={folder}: there is no such folder" for folder in missing))
    asked = {"--hydra-help": found.hydra_help, "--info": found.info, "--shell-completion": found.shell_completion}
    for_hydra = [
        text for flag, value in asked.items() if value for text in ([flag] if value is True else [flag, value])
    ]
    if found.frozen is not None and (extra := ["-m"] * found.multirun + words):
        raise UserError(f"--frozen is the whole config of a run; leave out {' '.join(extra)}")
    return Flags(found.help, found.multirun, found.cfg, found.package, folders, found.frozen, for_hydra), words


def with_scheduler(argv: Sequence[str]) -> list[str]:
    """The command line with what `hydra/launcher=slurm` means for each run: Hydra itself heeds it in sweeps only."""
    if LAUNCHER not in argv:
        return list(argv)
    is_sweep = {"-m", "--multirun"} & set(argv)
    return [word for word in argv if is_sweep or word != LAUNCHER] + ["cluster.scheduler=slurm"]


def with_run(argv: Sequence[str]) -> list[str]:
    """The command line of evaluate.py with `run=` before a directory that is given alone."""
    is_alone = [not word.startswith("-") and "=" not in word and Path(word).is_dir() for word in argv]
    takes_folder = [False, *(word in ("--config-dir", "-cd") for word in argv)]
    return [
        f"run={word}" if alone and not taken else word
        for word, alone, taken in zip(argv, is_alone, takes_folder, strict=False)
    ]


def help_page(config_name: str, groups: dict[str, list[str]]) -> str:
    """What `--help` prints: usage, flags, groups with their options, examples."""
    about, command = _ABOUT[config_name]
    if config_name == "evaluate":
        groups = {group: options for group, options in groups.items() if group in ("eval", "cluster")}
    width = max(map(len, groups))
    lines = [about, "", _parser().format_help().strip(), "", "groups and their options (GROUP=OPTION):"]
    for group, options in groups.items():
        listed = ", ".join(option for option in options if option not in PLACEHOLDERS)
        lines += _wrapped(f"  {group:<{width}}  ", listed)
    if config_name == "evaluate":
        found = [key for key in keys.table(EvaluateConfig).values() if not key.name.startswith("cluster.slurm.")]
        width = max(len(key.name) for key in found)
        lines += ["", "keys (KEY=VALUE):"]
        for key in found:
            lines += _wrapped(f"  {key.name:<{width}}  ", key.help)
    lines += ["", "every key, its default and meaning: docs/config.md", "", "examples:"]
    commands = [(f"{command} {words}".rstrip(), meaning) for words, meaning in _EXAMPLES[config_name]]
    width = max(len(words) for words, _ in commands)
    return "\n".join([*lines, *(f"  {words:<{width}}  {meaning}" for words, meaning in commands)])


def sweep_points(words: Sequence[Override]) -> Iterator[list[str]]:
    """The settings of every point of a sweep over lists of values; other kinds of sweep are left to their sweeper."""
    choices = []
    for word in words:
        if word.is_hydra_override() or (word.is_sweep_override() and not word.is_discrete_sweep()):
            continue
        if word.is_sweep_override():
            # Hydra escapes spaces, which need it nowhere.
            values = [text.replace("\\ ", " ") for text in word.sweep_string_iterator()]
            choices.append([f"{word.get_key_element()}={value}" for value in values])
        else:
            choices.append([word.input_line or ""])
    yield from (list(point) for point in itertools.product(*choices))


def _parser() -> ArgumentParser:
    parser = _Parser(
        prog="python train.py",
        add_help=False,
        allow_abbrev=False,
        usage=SUPPRESS,
        formatter_class=lambda prog: HelpFormatter(prog, max_help_position=28, width=110),
    )
    add = parser.add_argument
    add("--help", "-h", action="store_true", help="this page")
    add("--cfg", "-c", choices=["job", "hydra", "all"], help="print the config instead of running")
    add("--package", "-p", metavar="KEY", help="with --cfg: only this section, like model.vision")
    add("--resolve", action="store_true", help="with --cfg: accepted; what is printed is always resolved")
    add("--multirun", "-m", action="store_true", help="sweep: run every combination of key=a,b values")
    add(
        "--config-dir",
        "-cd",
        action="append",
        default=[],
        metavar="DIR",
        help="further options, in a folder like conf/",
    )
    add("--frozen", type=Path, metavar="FILE", help="run a config.yaml that a submitted job or a run has kept")
    add(
        "--info",
        "-i",
        nargs="?",
        const="all",
        metavar="WHAT",
        help="how Hydra composes: all, defaults, searchpath, ...",
    )
    add("--hydra-help", action="store_true", help="Hydra's own help")
    add("--shell-completion", "-sc", action="store_true", help=SUPPRESS)
    add("--version", action="version", version=f"clip_lightning {version('clip_lightning')}", help="the version")
    return parser


def _wrapped(head: str, text: str, width: int = 118) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * len(head))
