"""Weights & Biases for a run: Lightning's WandbLogger, with what it lacks.

A thread of its own drives it: a server that refuses, hangs or disappears, or a package that is missing, costs one
warning and no step. A run keeps its id over restarts. Without a login it runs offline. The API key belongs to W&B, and
is neither read into a config nor written.
"""

import netrc
import os
import queue
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger

from clip_lightning.config import compose, identity
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError
from clip_lightning.records import Record
from clip_lightning.reliability.atomic_files import write_atomically

INIT_SECONDS, FINISH_SECONDS, UPLOAD_SECONDS = 60, 30, 1800
ID_FILE = "wandb_id.txt"
MODES = ("auto", "online", "offline")
SCORE_COLUMNS = ("task", "what", "weights", "value", "low", "high", "n", "chance", "samples_seen")
_END = object()


class WandbLogger(Logger):
    """A W&B run in a thread: `log_metrics` returns at once."""

    def __init__(
        self,
        project: str = "clip_lightning",
        entity: str | None = None,
        mode: str = "auto",
        log_model: bool = False,
        **settings: Any,
    ) -> None:
        """Starts nothing yet.

        Args:
            project, entity: W&B's project, and its team or user.
            mode: auto (online where this user is logged in, otherwise offline), online, offline.
            log_model: whether the newest checkpoint becomes an artifact at the end.
            settings: further arguments of `wandb.init`.
        """
        super().__init__()
        self.project, self.entity, self.mode, self.settings = project, entity, mode, settings
        self.log_model = log_model
        self._rows: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        """W&B's project."""
        return self.project

    @property
    def version(self) -> str | None:
        """W&B's id of the run."""
        return None if self._thread is None else self._run_id

    def start(self, folder: Path, config: Config, notify: Callable[[str], None]) -> None:
        """Starts the W&B run; an online run that cannot start continues offline.

        Args:
            folder: the run's directory; W&B keeps its files in `wandb/` there.
            config: shown with the run.
            notify: prints a line.
        """
        mode, reason = resolve_mode(self.mode)
        if mode == "disabled":
            return
        self._folder, self._config, self._notify = folder, _shown(config), notify
        self._run_id = _run_id(folder / ID_FILE)
        if mode == "offline":
            notify(f"W&B offline ({reason}); logger=none switches it off; {sync_hint(folder)}")
        # A loader process that is forked during an import of the thread would wait for the import's lock forever.
        # Where the import fails, the thread's own import gives the warning.
        with suppress(Exception):
            import_module("wandb")
        self._thread = threading.Thread(target=self._work, args=(mode,), name="wandb", daemon=True)
        self._thread.start()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Queues a row. Args: step: samples seen."""
        if self._thread is not None:
            self._rows.put(dict(metrics) if step is None else {**metrics, "samples_seen": step})

    def log_end(self, summary: Mapping[str, Any], scores: Sequence[Record]) -> None:
        """Queues what a run ends with: `end/...` of its summary, a table of its scores, its figures and its report, and
        if `log_model` its newest checkpoint as an artifact.

        Args: summary: as in summary.json.
        """
        if self._thread is not None:
            self._rows.put(partial(self._log_end, summary=summary, scores=scores))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config is shown from the start."""

    def finish(self) -> None:
        """Ends the W&B run; waits at most `FINISH_SECONDS` for a server."""
        if self._thread is None:
            return
        self._rows.put(_END)
        seconds = UPLOAD_SECONDS if self.log_model else FINISH_SECONDS
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._notify(f"warning: W&B did not take the last numbers within {seconds} s; {sync_hint(self._folder)}")

    def _work(self, mode: Literal["online", "offline"]) -> None:
        try:
            logger = self._begin(mode)
            while (item := self._rows.get()) is not _END:
                item(logger.experiment) if callable(item) else logger.log_metrics(item)
            logger.experiment.finish()
        # W&B raises many kinds of error, its own and those of its network library: none may end the training.
        except Exception as error:
            self._notify(
                f"warning: W&B shows no more of this run ({_first_line(error)}); all numbers are in {self._folder}"
            )

    def _log_end(self, run: Any, *, summary: Mapping[str, Any], scores: Sequence[Record]) -> None:
        import wandb

        from clip_lightning.report.page import FILE as REPORT
        from clip_lightning.training.saved_model import find_checkpoint

        rows = [[getattr(score, column) for column in SCORE_COLUMNS] for score in scores]
        shown: dict[str, Any] = {"scores": wandb.Table(columns=list(SCORE_COLUMNS), data=rows)}
        for figure in sorted((self._folder / "figures").glob("*.png")):
            shown[f"figures/{figure.stem}"] = wandb.Image(str(figure))
        if (report := self._folder / REPORT).exists():
            shown["report"] = wandb.Html(str(report))
        run.log({**shown, "samples_seen": summary["samples"]})
        run.summary.update({f"end/{key}": value for key, value in summary.items() if not isinstance(value, dict)})
        if self.log_model:
            checkpoint = find_checkpoint(self._folder, "last")
            artifact = wandb.Artifact(
                f"model-{self._run_id}", "model", metadata={"samples_seen": checkpoint.samples_seen}
            )
            artifact.add_dir(str(checkpoint.path))
            run.log_artifact(artifact)

    def _begin(self, mode: Literal["online", "offline"]) -> Any:
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        if mode == "online":
            try:
                return self._lightning_logger("online")
            except Exception as error:
                wandb.teardown()  # the failed run would keep the id
                wandb.setup(wandb.Settings(silent=True))
                self._notify(f"warning: W&B continues offline ({_first_line(error)}); {sync_hint(self._folder)}")
        return self._lightning_logger("offline")

    def _lightning_logger(self, mode: Literal["online", "offline"]) -> Any:
        """Lightning's logger around a run that is made here: Lightning's own `init` has no time-out."""
        import wandb
        from lightning.pytorch.loggers import WandbLogger as LightningLogger

        run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self._folder.name,
            id=self._run_id,
            resume="allow",
            dir=self._folder,
            mode=mode,
            config=self._config,
            settings=wandb.Settings(console="off", silent=True, init_timeout=INIT_SECONDS, x_disable_stats=True),
            **self.settings,
        )
        run.define_metric("*", step_metric="samples_seen")
        return LightningLogger(experiment=run)


def resolve_mode(mode: str) -> tuple[Literal["online", "offline", "disabled"], str]:
    """How W&B will run, and why.

    Raises:
        UserError: the mode is not known, or online was requested without a login.
    """
    if mode not in MODES:
        raise UserError(f"logger.wandb.mode={mode} must be one of {', '.join(MODES)}")
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted == "disabled":
        return "disabled", "WANDB_MODE=disabled"
    if wanted in ("offline", "dryrun") or mode == "offline":
        return "offline", "WANDB_MODE=offline" if wanted else "logger.wandb.mode=offline"
    if is_logged_in():
        return "online", "logged in"
    if mode == "online":
        raise UserError(
            "logger.wandb.mode=online: there is no W&B login here; run `wandb login`, set WANDB_API_KEY, or "
            "write logger.wandb.mode=offline"
        )
    return "offline", "not logged in"


def is_logged_in() -> bool:
    """Whether W&B will find a key: in its environment variable, or in netrc for its host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    home = Path.home()
    for file in filter(None, (os.environ.get("NETRC"), home / ".netrc", home / "_netrc")):
        try:
            if netrc.netrc(str(file)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def sync_hint(folder: Path) -> str:
    """How what W&B keeps on the disk can be shown later."""
    return f"to show the run later: wandb sync {folder}/wandb/offline-run-*"


def _shown(config: Config) -> dict[str, Any]:
    """The config without the credentials of URLs."""
    return asdict(compose.parse(identity.redacted(compose.dump(config)), Config, source="the config of this run"))


def _run_id(file: Path) -> str:
    """The run's id for W&B, made once: two users may have runs of one science."""
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex[:12] + "\n")
    return file.read_text(encoding="utf-8").strip()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
