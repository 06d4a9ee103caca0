"""Trains a CLIP model: `python train.py key=value ...`; `python train.py --help` shows what can be set."""

from collections.abc import Callable, Sequence

from clip_lightning.config import compose
from clip_lightning.config.schema import Config


def task(config: Config, arguments: Sequence[str]) -> int:
    """Trains, or submits a job that does; torch is imported only here, when the config is known to be right."""
    from clip_lightning.run.start import start

    return start(config, arguments)


def sweep(cells: Sequence[compose.Cell], command: Sequence[str], launch: Callable[[compose.Task], int]) -> int:
    """Trains the cells of a sweep."""
    from clip_lightning.run.sweep.cells import run_cells

    return run_cells(cells, command, launch)


if __name__ == "__main__":
    compose.main("train", task, sweep)
