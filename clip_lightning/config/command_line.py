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
from clip_lightning.config.schema import Config, EvaluateConfig
from clip_lightning.errors import UserError
from clip_lightning.formatting import own_command

_ABOUT = {
    "train": "train.py trains a CLIP model; settings are GROUP=OPTION and KEY=VALUE.",
    "evaluate": "evaluate.py measures a checkpoint; settings are GROUP=OPTION and KEY=VALUE.",
}
# What a group decides, for the help page; conf/README.md has more about them.
_DECIDES = {
    "callbacks": "callbacks of Lightning, added to the project's own",
    "cluster": "the hardware: processes, devices, SLURM; never changes what is learned",
    "compute": "the recipe: samples, global batch, learning rate, schedule, precision, seed",
    "data": "the pairs; names the default model and recipe",
    "debug": "one step through everything, overfitting, a profile",
    "eval": "what is measured during and after training",
    "experiment": "a named study: options and values of several groups",
    "logger": "where numbers are shown beside the run's own files; several as [csv,wandb]",
    "loss": "the objective",
    "model": "both towers and their tokenizer",
    "model/text": "the text tower alone, with model=pair",
    "model/vision": "the image tower alone, with model=pair",
    "optimizer": "the optimizer without its learning rate",
    "scale": "a rung of a scaling ladder: model, samples, batch, learning rate, warm-up",
    "trainer": "further arguments of Lightning's Trainer",
}
# Keys that most commands set, beside those without a group.
_COMMON = (
    "compute.duration",
    "compute.global_batch",
    "compute.learning_rate",
    "compute.warmup",
    "compute.precision",
    "compute.seed",
    "data.path",
    "cluster.devices",
    "cluster.micro_batch",
    "cluster.workers",
    "cluster.time_limit_minutes",
    "eval.tasks",
    "eval.every",
    "model.pretrained",
)
_COMPLETION = """with install=bash, zsh or fish: a script; eval "$(python train.py -sc install=bash)\""""
_SHELL_COMMANDS, _SHELLS = ("install", "uninstall", "query"), ("bash", "zsh", "fish")
_EXAMPLES = {
    "train": (
        ("", "the embedded default, in minutes on a CPU"),
        ("model=vit_b32 data=cc12m compute=openclip_cc12m", "a named model, data set and recipe"),
        ("compute.learning_rate=1e-3 cluster=ddp cluster.devices=8", "other values, other hardware"),
        ("-m model=vit_b32,vit_b16 compute.seed=0,1", "a sweep: one run each"),
        ("-m hydra/launcher=slurm compute.seed=0,1", "the sweep as an array of SLURM jobs"),
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
    if found.shell_completion:
        _refuse_shell(words)
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
    """What `--help` prints: flags, groups with what they decide and their options, keys, examples."""
    about, command = _ABOUT[config_name], own_command(config_name)
    if config_name == "evaluate":
        groups = {group: options for group, options in groups.items() if group in ("eval", "cluster")}
    lines = [about, "", _parser().format_help().strip(), ""]
    lines += ["groups (GROUP=OPTION), what each decides, its options; a line about each: python -m clip_lightning.list"]
    width = max(map(len, groups))
    for group, options in groups.items():
        lines += [f"  {group:<{width}}  {_DECIDES.get(group, '')}".rstrip()]
        listed = ", ".join(option for option in options if option not in PLACEHOLDERS)
        lines += _wrapped(" " * (width + 4), listed)
    lines += ["", "keys (KEY=VALUE); all of them, with defaults: docs/config.md"]
    found = _shown_keys(config_name)
    width = max(len(key.name) for key in found)
    for key in found:
        lines += _wrapped(f"  {key.name:<{width}}  ", key.help)
    lines += ["", "examples:"]
    commands = [(f"{command} {words}".rstrip(), meaning) for words, meaning in _EXAMPLES[config_name]]
    width = max(len(words) for words, _ in commands)
    return "\n".join([*lines, *(f"  {words:<{width}}  {meaning}" for words, meaning in commands)])


def _shown_keys(config_name: str) -> list[keys.Key]:
    """The keys of evaluate.py without those of SLURM; of train.py, which has too many for a page, the common ones."""
    if config_name == "evaluate":
        return [key for key in keys.table(EvaluateConfig).values() if not key.name.startswith("cluster.slurm.")]
    table = keys.table(Config)
    own = [key for name, key in table.items() if "." not in name and name not in _DECIDES]
    return [*own, *(table[name] for name in _COMMON)]


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
    add = parser.add_argument_group("flags that print something and stop").add_argument
    add("--help", "-h", action="store_true", help="this page")
    add("--version", action="version", version=f"clip_lightning {version('clip_lightning')}", help="the version")
    add("--cfg", "-c", choices=["job", "hydra", "all"], metavar="job", help="the whole config of this command")
    add("--package", "-p", metavar="KEY", help="with --cfg: only this section, like model.vision")
    add("--resolve", action="store_true", help="with --cfg: accepted; what is printed is always resolved")
    add("--info", "-i", nargs="?", const="all", metavar="WHAT", help="how Hydra composes: defaults, searchpath, ...")
    add("--hydra-help", action="store_true", help="Hydra's own help")
    add("--shell-completion", "-sc", action="store_true", help=_COMPLETION)
    add = parser.add_argument_group("flags that change what is run").add_argument
    add("--multirun", "-m", action="store_true", help="sweep: run every combination of key=a,b values")
    add("--frozen", type=Path, metavar="FILE", help="run a config.yaml that a submitted job or a run has kept")
    folder = "further options, in a folder like conf/"
    add("--config-dir", "-cd", action="append", default=[], metavar="DIR", help=folder)
    return parser


def _refuse_shell(words: Sequence[str]) -> None:
    """Raises UserError for a request that Hydra's completion does not know."""
    command, _, shell = words[0].partition("=") if len(words) == 1 else ("", "", "")
    if command not in _SHELL_COMMANDS or shell not in _SHELLS:
        raise UserError(f"--shell-completion takes install=SHELL or uninstall=SHELL; SHELL is {', '.join(_SHELLS)}")


def _wrapped(head: str, text: str, width: int = 118) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * len(head))
