"""From a command line to a checked config: Hydra composes the groups, the schema types them, `checks` compares them.

Nothing here imports torch, so that mistakes are reported in about a second, all of them at once.
`by_data` and `by_model` stand for what the chosen data and model name; they are replaced after a first composition,
which is why sweeps compose each of their points here as well.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from clip_lightning.config import checks, command_line, grid, identity, keys, overrides, parts, presets, recipes
from clip_lightning.config.checks.cluster import take_torchrun_world
from clip_lightning.config.exclusion import digest_of
from clip_lightning.config.foreign.auto import fill
from clip_lightning.config.frozen import parse
from clip_lightning.config.grid import Cell
from clip_lightning.config.schema import Config, EvaluateConfig, LossConfig
from clip_lightning.errors import UserError, print_error

# In a checkout beside the package; in an installed wheel inside it.
_CHECKOUT, _PACKAGED = Path(__file__).parents[2] / "conf", Path(__file__).parents[1] / "conf"
CONF = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
SCHEMAS: dict[str, type] = {"train": Config, "evaluate": EvaluateConfig}
# Groups whose option may stand for another one, and the key that names that one.
_CHOSEN_BY = {"model": "data.model", "compute": "data.compute", "loss": "model.loss"}
# Arguments for processes that a run starts: they are ranks of that run, not of the sweep it may be part of.
ARGUMENTS_VARIABLE = "CLIP_LIGHTNING_OVERRIDES"

# Exit codes of a run that a signal has stopped (128 + SIGINT, SIGUSR2, SIGTERM): its sweep stops as well.
STOPPED_BY_SIGNAL = (130, 140, 143)

Task = Callable[[Any, Sequence[str]], int]
# Runs a sweep: gets its cells, the command, and what hands every cell to Hydra's launcher; returns the exit code.
Sweep = Callable[[list[Cell], Sequence[str], Callable[[Task], int]], int]

for _name, _schema in SCHEMAS.items():
    ConfigStore.instance().store(name=f"{_name}_schema", node=_schema)


class Composition(NamedTuple):
    """A composed config with interpolations, the option of each group, an experiment's grid, and keys left open."""

    config: DictConfig
    choices: dict[str, str | None]
    grid: dict[str, Any]
    required: set[str]


def load(config_name: str, argv: Sequence[str], *, check: bool = True) -> Any:
    """The config of a command line: typed, resolved, and checked.

    Args:
        config_name: train or evaluate.
        argv: settings like `model=vit_b32`, and `--config-dir=DIR` for further options.
        check: whether fields are compared with each other and with the disk; types and names are checked in any case.

    Returns:
        A `Config` for train, an `EvaluateConfig` for evaluate.

    Raises:
        UserError: all that is wrong, one sentence each.
    """
    flags, words = command_line.split(argv)
    if flags.frozen is not None:
        config = take_torchrun_world(read(flags.frozen, SCHEMAS[config_name]))
        if problems := checks.check(config) if check else []:
            raise UserError(*problems)
        return config
    grammar = overrides.Grammar(SCHEMAS[config_name], [CONF, *flags.config_dirs])
    good, problems = overrides.check(words, grammar, sweep=False)
    try:
        composed = compose(config_name, good, grammar)
        config = take_torchrun_world(_resolve(composed, problems))
        if isinstance(config, Config):
            fill(config.model)
            config.data.parts = parts.resolve(config.data, grammar.groups["data"], partial(_data_option, grammar))
            config.data.excluded = digest_of(config.data)
    except UserError as error:
        raise UserError(*problems, *error.problems) from error
    if check:
        problems += grid.unswept(composed.choices.get("experiment"), composed.grid, good)
        # What a wrong word would have set is not reported as missing as well.
        wrong = {word.partition("=")[0] for word in words} - {word.key_or_group for word in good}
        silent = tuple(f"{key}{end}" for key in wrong for end in "= :")
        problems += [problem for problem in checks.check(config) if not problem.startswith(silent)]
    if problems:
        raise UserError(*problems)
    return config


def compose(config_name: str, words: Sequence[Override], grammar: overrides.Grammar) -> Composition:
    """Composes the options and settings, `by_data` and `by_model` replaced by what they stand for.

    Raises:
        UserError: a preset or a user's own file does not fit the schema.
    """
    settings = [overrides.to_hydra(word, grammar) for word in words]
    settings += presets.search_path(grammar.folders[1:])
    # What belongs to a model or recipe that is not yet chosen waits for the second round.
    given = [word.key_or_group for word in words]
    belonging = {"model": "model/", "compute": "compute.recipes."}
    waiting = [
        word for word in settings for group, head in belonging.items() if word.startswith(head) and group not in given
    ]
    chosen = [word for word in settings if word not in waiting]
    with _hydra():
        composed = _compose(config_name, chosen, grammar)
        placeholders = [group for group in _CHOSEN_BY if composed.choices.get(group) in overrides.PLACEHOLDERS]
        named: dict[str, Any] = {}
        # One more composition; two where the model that the data names has another loss than the default.
        while named != (found := _named(composed, placeholders, grammar)) or waiting:
            named, waiting = found, []
            chosen = [*settings, *(f"{group}={option}" for group, option in named.items())]
            composed = _compose(config_name, chosen, grammar)
        left = presets.required(config_name, chosen, composed.choices, grammar) - {word.key_or_group for word in words}
    return composed._replace(required=left)


def main(config_name: str, argv: Sequence[str], task: Task, sweep: Sweep | None = None) -> NoReturn:
    """Runs a command: parses its arguments, does what they request, and exits with its code.

    Args:
        config_name: train or evaluate.
        argv: the arguments.
        task: called with the checked config and the arguments that made it; returns the exit code.
        sweep: runs the cells of a sweep; without it they are tasks one after the other.
    """
    inherited = os.environ.get(ARGUMENTS_VARIABLE)
    argv = json.loads(inherited) if inherited else argv
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        argv = command_line.with_scheduler(argv)
        if config_name == "evaluate":
            argv = command_line.with_run(argv)
        code = _answer(config_name, argv, task, sweep)
        if code is None:
            config = load(config_name, argv)
            with _arguments_for_ranks(argv):
                code = task(config, argv)
    except UserError as error:
        if full_error:
            raise
        code = print_error(error)
    sys.exit(code)


def read(path: Path, schema: type = Config) -> Any:
    """A config that `dump` has written.

    Raises:
        UserError: the file is missing, is not valid YAML, or does not fit the schema.
    """
    try:
        return parse(path.read_text(encoding="utf-8"), schema, source=str(path))
    except OSError as error:
        raise UserError(f"{path}: this config cannot be read ({error.strerror})") from error


def dump(config: Any) -> str:
    """A resolved config as YAML, keys in the schema's order; `read` gives the same config back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().split("\n")[0]


def _answer(config_name: str, argv: Sequence[str], task: Task, sweep: Sweep | None) -> int | None:
    """Prints what flags request, or runs a sweep, and returns the exit code; None where the command is one run."""
    flags, words = command_line.split(argv)
    grammar = overrides.Grammar(SCHEMAS[config_name], [CONF, *flags.config_dirs])
    if problems := overrides.repeated(words, grammar):
        raise UserError(*problems)
    if flags.help:
        print(command_line.help_page(config_name, grammar.groups))
    elif flags.hydra_arguments:
        settings = [] if "--hydra-help" in flags.hydra_arguments else words
        _call_hydra(config_name, [*flags.hydra_arguments, *settings], flags.config_dirs, lambda _: 0)
    elif flags.cfg and flags.multirun:
        for point in command_line.sweep_points(_swept(config_name, words, grammar)):
            print(f"# {' '.join(point)}")
            _show(config_name, [*point, *_directories(flags.config_dirs)], flags)
    elif flags.cfg:
        _show(config_name, argv, flags)
    elif flags.multirun:
        return _sweep(config_name, words, grammar, task, sweep)
    else:
        return None
    return 0


@contextmanager
def _arguments_for_ranks(argv: Sequence[str]) -> Iterator[None]:
    """Inside, processes that the run starts have these arguments, until rank 0 replaces them by its frozen config."""
    os.environ[ARGUMENTS_VARIABLE] = json.dumps(list(argv))
    try:
        yield
    finally:
        del os.environ[ARGUMENTS_VARIABLE]


def _swept(config_name: str, words: Sequence[str], grammar: overrides.Grammar) -> list[Override]:
    """The settings of a sweep, its experiment's grid among them. Raises UserError for what the schema does not know."""
    good, problems = overrides.check(words, grammar, sweep=True)
    if problems:
        raise UserError(*problems)
    experiment = [word for word in good if word.key_or_group == "experiment" and not word.is_sweep_override()]
    found = compose(config_name, experiment, grammar).grid if experiment else {}
    return grid.with_grid(good, found, grammar)


def _directories(folders: Sequence[Path]) -> list[str]:
    return [f"--config-dir={folder}" for folder in folders]


def _sweep(config_name: str, words: Sequence[str], grammar: overrides.Grammar, task: Task, sweep: Sweep | None) -> int:
    """Runs every point of a sweep through Hydra's launcher, after all of them have been checked."""
    good, folders = _swept(config_name, words, grammar), grammar.folders[1:]
    cells = _cells(config_name, good, _directories(folders))
    are_jobs = bool(cells) and all(cell.config.cluster.scheduler == "slurm" for cell in cells)
    if are_jobs and "SLURM_JOB_ID" not in os.environ and all(word.key_or_group != "hydra/launcher" for word in good):
        good += overrides.check([command_line.LAUNCHER], grammar, sweep=True)[0]
    settings = [*(overrides.to_hydra(word, grammar) for word in good), "hydra.sweeper.params=null"]

    def launch(task: Task) -> int:
        exit_codes = []

        def job(_: DictConfig) -> int:
            argv = [word.lstrip("+") for word in HydraConfig.get().overrides.task] + _directories(folders)
            try:
                config = load(config_name, argv)
                with _arguments_for_ranks(argv):
                    exit_codes.append(task(config, argv))
            except UserError as error:
                exit_codes.append(print_error(error))
            if exit_codes[-1] in STOPPED_BY_SIGNAL:
                sys.exit(exit_codes[-1])
            return exit_codes[-1]

        _call_hydra(config_name, ["--multirun", *settings], folders, job)
        return max(exit_codes, default=0)

    return sweep(cells, words, launch) if sweep and grid.is_listed(good) else launch(task)


def _cells(config_name: str, words: Sequence[Override], directories: Sequence[str]) -> list[Cell]:
    """Every point of a sweep, checked. Raises UserError for what is wrong in any of them."""
    cells, problems = [], []
    for point in command_line.sweep_points(words):
        argv = [*point, *directories]
        try:
            cells.append(Cell(grid.settings_of(point, words), argv, load(config_name, argv)))
        except UserError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems := problems or grid.problems(cells):
        raise UserError(*problems)
    return cells


def _call_hydra(
    config_name: str, arguments: Sequence[str], folders: Sequence[Path], job: Callable[[DictConfig], Any]
) -> None:
    """Hydra's own command line, with this project's folders."""
    before = sys.argv
    sys.argv = [before[0], *arguments, *presets.search_path(folders)]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except HydraException as error:
        raise UserError(first_line(error)) from error
    finally:
        sys.argv = before


def _show(config_name: str, argv: Sequence[str], flags: command_line.Flags) -> None:
    """Prints the config (`job`), Hydra's own (`hydra`), or both (`all`)."""
    if flags.cfg in ("hydra", "all"):
        _call_hydra(config_name, ["--cfg", "hydra"], flags.config_dirs, lambda _: None)
    if flags.cfg in ("job", "all"):
        tree = OmegaConf.structured(load(config_name, argv, check=False))
        part = OmegaConf.select(tree, flags.package) if flags.package else tree
        if not OmegaConf.is_config(part):
            raise UserError(f"--package {flags.package}: there is no such section; write one like model.vision")
        print(OmegaConf.to_yaml(part), end="")


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra with conf/ as its folder, also inside a sweep, where Hydra is initialised already."""
    if not CONF.is_dir():
        raise UserError(f"{CONF}: the presets are missing; train and evaluate from a checkout of the repository")
    standing = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = standing


def _compose(config_name: str, settings: list[str], grammar: overrides.Grammar) -> Composition:
    try:
        config = hydra.compose(config_name, settings, return_hydra_config=True)
    except MissingConfigException as error:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        near = keys.did_you_mean(keys.near(option, grammar.groups.get(group, [])))
        raise UserError(f"a preset names {group}={option}: there is no such option{near}") from error
    except YAMLError as error:
        raise UserError(f"a preset is not YAML that can be read: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(*_diagnose(config_name, settings, grammar, error)) from error
    choices = dict(config.hydra.runtime.choices)
    found = OmegaConf.to_container(config.hydra.sweeper).get("params") or {}  # type: ignore[union-attr]
    with open_dict(config):
        del config["hydra"]
    return Composition(config, choices, found, set())


def _diagnose(config_name: str, settings: list[str], grammar: overrides.Grammar, error: Exception) -> list[str]:
    """Every key in the composed files that does not fit the schema; Hydra's message where that is not the cause."""
    message = " ".join(first_line(cause) for cause in (error, error.__cause__) if cause is not None)
    try:
        return presets.problems(config_name, settings, grammar) or [message]
    except HydraException:
        return [message]


def _named(composed: Composition, groups: Sequence[str], grammar: overrides.Grammar) -> dict[str, Any]:
    """The option that each of `groups` is replaced by. Raises UserError for one that does not exist."""
    named = {group: OmegaConf.select(composed.config, _CHOSEN_BY[group]) for group in groups}
    problems = [
        f"{_CHOSEN_BY[group]}={option}: there is no such option of {group}"
        + keys.did_you_mean(keys.near(str(option), grammar.groups[group]))
        for group, option in named.items()
        if option not in grammar.groups[group]
    ]
    if problems:
        raise UserError(*problems)
    return named


def _resolve(composed: Composition, problems: list[str]) -> Any:
    """The composed config as typed objects, with what other groups own filled in; adds to `problems`."""
    try:
        plain = identity.flatten(OmegaConf.to_container(composed.config, resolve=False))  # type: ignore[arg-type]
        if missing := [key for key, value in plain.items() if value == MISSING or key in composed.required]:
            raise UserError(*(presets.missing_problem(key) for key in missing))
        config = OmegaConf.to_object(composed.config)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: its ${{...}} cannot be resolved ({first_line(error)})") from error
    if isinstance(config, Config):
        config.experiment = composed.choices.get("experiment")
        if config.eval.tasks is None:
            config.eval.tasks = [] if any(config.eval.suites.values()) else list(config.data.tasks)
        problems += [*recipes.fill(config), *_name_teacher(config.loss)]
    return config


def _data_option(grammar: overrides.Grammar, name: str) -> DictConfig:
    """The `data` section with another option of that group."""
    with _hydra():
        composed = _compose("train", [f"data={name}", *presets.search_path(grammar.folders[1:])], grammar)
    section: DictConfig = composed.config.data
    return section


def _name_teacher(loss: LossConfig) -> list[str]:
    """Fills in the teacher's science, by which the run knows it wherever it lies."""
    if loss.teacher is None:
        return []
    path = Path(loss.teacher).expanduser().absolute()
    loss.teacher = str(path)
    if path.is_symlink():
        return [f"loss.teacher={path} is a link, which may soon lead elsewhere; write {path.resolve()}"]
    if not (path / "config.yaml").is_file():
        runs = [run.parent.name for run in sorted(path.parent.glob("*/config.yaml"))]
        near = keys.did_you_mean(keys.near(path.name, runs))
        return [f"loss.teacher={path} is not a run's directory: it has no config.yaml{near}"]
    found = identity.science_hash(read(path / "config.yaml"))
    if loss.teacher_science not in (None, found):
        return [f"loss.teacher_science={loss.teacher_science} is not that of loss.teacher={path}, {found}"]
    loss.teacher_science = found
    return []
