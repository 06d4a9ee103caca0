"""The loggers of a run, by `_target_`: any of Lightning's, several at once, with one set of names over samples seen.

Every number has one owner: a record of the run. `Loggers.write` shows records under their stable names; what Lightning
and other callbacks log by themselves is shown over samples seen as well.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from clip_lightning.config.schema import Config
from clip_lightning.records import EMA, Record, metric_name
from clip_lightning.run import objects
from clip_lightning.run.console.summary import latest_scores
from clip_lightning.run.wandb_logger import WandbLogger, resolve_mode
from clip_lightning.training.clip_module import ClipModule


def build_loggers(config: Config, folder: Path) -> list[Logger]:
    """The loggers that `logger` names; they write into the run's directory unless `save_dir` is set.

    Raises: UserError for an import path, an argument or a missing package.
    """
    named = {name: given for name, given in config.logger.items() if given is not None}
    return [objects.build(given, f"logger.{name}", save_dir=str(folder)) for name, given in named.items()]


def check_loggers(config: Config) -> None:
    """Raises UserError where a logger's import path, argument or mode is wrong; starts nothing."""
    for name, given in config.logger.items():
        objects.check(given, f"logger.{name}")
        if given is not None and given.get("_target_") == f"{WandbLogger.__module__}.WandbLogger":
            resolve_mode(given.get("mode", "auto"))


def use_samples_as_steps(loggers: Iterable[Logger], module: ClipModule) -> None:
    """Makes the loggers show what other callbacks log over samples seen too, instead of the steps of this start."""
    current = weakref.ref(module)  # loggers live longer than a fit that rolls back, and two models may not fit
    for logger in loggers:
        log = partial(type(logger).log_metrics, logger)

        def log_metrics(metrics: Any, step: int | None = None, *, log: Any = log) -> None:
            log(metrics, step=step if (found := current()) is None else found.samples_seen)

        logger.log_metrics = log_metrics  # type: ignore[method-assign]


class Loggers:
    """Rank 0's side of the loggers: started, written to, and finished; a logger that fails costs one warning."""

    def __init__(self, loggers: list[Logger], folder: Path, config: Config, notify: Callable[[str], None]) -> None:
        """Starts those that need it. Args: folder: the run's directory. notify: prints a line."""
        self._loggers, self._notify = list(loggers), notify
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.start(folder, config, notify)

    def write(self, records: Iterable[Record]) -> None:
        """Shows records, a row for each number of samples seen."""
        rows: dict[int, dict[str, float]] = {}
        for record in records:
            rows.setdefault(record.samples_seen, {})[metric_name(record)] = record.value
        for samples_seen, row in rows.items():
            self._call(partial(_log_row, row=row, samples_seen=samples_seen))
        self._call(lambda logger: logger.save())

    def end(self, summary: Mapping[str, Any], records: Sequence[Record]) -> None:
        """Shows what a run ends with in W&B. Args: summary: as in summary.json. records: all of the run."""
        scores = [record for weights in ("", EMA) for record in latest_scores(records, weights)]
        self._call(lambda logger: logger.log_end(summary, scores) if isinstance(logger, WandbLogger) else None)

    def finish(self) -> None:
        """Writes what is left."""
        self._call(lambda logger: logger.finish() if isinstance(logger, WandbLogger) else logger.finalize("success"))

    def _call(self, action: Callable[[Any], None]) -> None:
        for logger in list(self._loggers):
            try:
                action(logger)
            except Exception as error:  # a server's or a user's class may raise anything: the records are kept
                self._loggers.remove(logger)
                first_line = (str(error).strip() or type(error).__name__).split("\n")[0]
                self._notify(f"warning: {type(logger).__name__} shows no more of this run ({first_line})")


def _log_row(logger: Logger, row: dict[str, float], samples_seen: int) -> None:
    """Logs at these samples seen, whatever `use_samples_as_steps` has set."""
    type(logger).log_metrics(logger, row, step=samples_seen)
