"""The command line of the package: `clip-lightning train key=value ...`, `clip-lightning evaluate run=DIR`.

`python -m clip_lightning` is the same, and so are train.py and evaluate.py in a checkout. torch is imported only after
the config has been checked.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from clip_lightning.config import compose
from clip_lightning.config.schema import Config, EvaluateConfig
from clip_lightning.errors import silent_broken_pipe

_COMMANDS = ("train", "evaluate")
_USAGE = "usage: clip-lightning {train,evaluate} [key=value ...]; clip-lightning train --help lists the keys"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with its code.

    Args: argv: the command's name and its settings; by default those of the process.
    """
    name, *settings = (sys.argv[1:] if argv is None else argv) or [""]
    with silent_broken_pipe():
        if name == "train":
            compose.main("train", settings, _train, _sweep)
        if name == "evaluate":
            compose.main("evaluate", settings, _evaluate)
        if name in ("--shell-completion", "-sc"):
            _complete([name, *settings])
        is_help = name in ("--help", "-h")
        print(_USAGE, file=sys.stdout if is_help else sys.stderr)
        sys.exit(0 if is_help else 2)


def _complete(settings: Sequence[str]) -> NoReturn:
    """Answers --shell-completion of `clip-lightning`, whose settings follow the name of a command."""
    program, _, line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    name, is_complete, words = line.lstrip().partition(" ")
    if "query" in settings[-1] and not (is_complete and name in _COMMANDS):
        print(" ".join(command for command in _COMMANDS if not is_complete and command.startswith(name)))
        sys.exit(0)
    os.environ["COMP_LINE"] = f"{program} {words}"  # Hydra knows no commands
    compose.main(name if name in _COMMANDS else "train", settings, _train)


def _train(config: Config, arguments: Sequence[str]) -> int:
    """Trains, or submits a job that does. The first line is printed before torch, which takes seconds, is imported."""
    from clip_lightning.run.console.headline import headline
    from clip_lightning.run.process_rank import rank_of_process
    from clip_lightning.slurm.submit import is_submitted, submit

    if is_submitted(config):
        return submit(config)
    if rank_of_process() == 0:
        print(headline(config, arguments), flush=True)
    from clip_lightning.run.train import train

    return train(config, arguments)


def _sweep(cells: Sequence[compose.Cell], command: Sequence[str], launch: Callable[[compose.Task], int]) -> int:
    """Trains the cells of a sweep."""
    from clip_lightning.run.sweep.cells import run_cells

    return run_cells(cells, command, launch)


def _evaluate(config: EvaluateConfig, arguments: Sequence[str]) -> int:
    """Evaluates a run."""
    from clip_lightning.run.evaluate import evaluate

    return evaluate(config)


if __name__ == "__main__":
    main()
