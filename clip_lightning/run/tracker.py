"""Where the numbers of a run go: always into its own JSONL, and to Weights & Biases where the user wants that.

The JSONL is the record. W&B is driven by Lightning's logger from a thread of its own: a server that refuses, hangs or
vanishes, or a package that is missing, costs one warning and never a step. The API key is W&B's own affair and is
neither read into a config nor written.
"""

import netrc
import os
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from clip_lightning.config import identity
from clip_lightning.config.schema import Config, TrackerConfig
from clip_lightning.errors import UserError
from clip_lightning.records import Record, RecordWriter, read_records, write_parquet
from clip_lightning.reliability import provenance

INIT_SECONDS, FINISH_SECONDS = 60, 30
_END = object()


class Tracker:
    """Writes records to `metrics.jsonl` in the run's directory, and shows them to W&B if there is one."""

    def __init__(
        self,
        folder: Path,
        context: dict[str, Any],
        wandb: "WandbThread | None" = None,
        notify: Callable[[str], None] = print,
    ) -> None:
        """Args.

        folder: the run's directory.
        context: fields of `Record` that every record of this run carries.
        wandb: where records are shown besides.
        notify: is told that the disk takes nothing.
        """
        self.path = folder / "metrics.jsonl"
        self.wandb = wandb
        self._writer = RecordWriter(self.path, notify, **context)

    def resume_at(self, samples_seen: int) -> None:
        """Forgets records past the checkpoint that training goes on from."""
        self._writer.truncate_after(samples_seen)

    def write(self, records: Iterable[Record]) -> None:
        """Writes records; they are on their way to the disk when this returns."""
        written = self._writer.write(records)
        if self.wandb is not None and written:
            self.wandb.send(written)

    def records(self) -> list[Record]:
        """All records of the run so far, in the order they were written."""
        return read_records(self.path)

    def close(self) -> None:
        """Writes `records.parquet` beside the JSONL, and ends the tracker's run."""
        self._writer.close()
        write_parquet(read_records(self.path), self.path.with_name("records.parquet"))
        if self.wandb is not None:
            self.wandb.finish()


class WandbThread:
    """A W&B run in a thread: whatever happens to it, `send` returns at once."""

    def __init__(
        self,
        tracker: TrackerConfig,
        mode: str,
        *,
        folder: Path,
        run_id: str,
        config: Any,
        notify: Callable[[str], None],
    ) -> None:
        """Starts the run.

        Args:
            mode: online or offline; an online run that cannot begin goes on offline.
            folder: the run's directory; W&B keeps its files in `wandb/` there.
            run_id: the same at every start, so that one run on the server goes on.
            config: the resolved config, shown with the run.
            notify: is told in one sentence of what fails.
        """
        self.tracker, self.mode, self.folder, self.run_id, self.notify = tracker, mode, folder, run_id, notify
        self.config = asdict(config)
        self._rows: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def send(self, records: list[Record]) -> None:
        """Hands records over."""
        rows: dict[int, dict[str, float]] = {}
        for record in records:
            rows.setdefault(record.samples_seen, {})[_metric_name(record)] = record.value
        for samples_seen, row in rows.items():
            self._rows.put({**row, "samples_seen": samples_seen})

    def finish(self) -> None:
        """Ends the run; does not wait longer than `FINISH_SECONDS` for a server."""
        self._rows.put(_END)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            self.notify(
                f"warning: W&B did not take the last numbers within {FINISH_SECONDS} s; {sync_hint(self.folder)}"
            )

    def _work(self) -> None:
        try:
            logger = self._begin()
            while (row := self._rows.get()) is not _END:
                logger.log_metrics(row)
            logger.experiment.finish()
        # W&B raises many kinds of error, its own and those of its network library: none may end the training.
        except Exception as error:
            self.notify(
                f"warning: W&B shows no more of this run ({_first_line(error)}); all numbers are in {self.folder}"
            )

    def _begin(self) -> Any:
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        if self.mode == "online":
            try:
                return self._logger("online")
            except Exception as error:
                wandb.teardown()  # the failed run would keep the id
                wandb.setup(wandb.Settings(silent=True))
                self.notify(f"warning: W&B goes on offline ({_first_line(error)}); {sync_hint(self.folder)}")
        return self._logger("offline")

    def _logger(self, mode: Literal["online", "offline"]) -> Any:
        """Lightning's logger around a run that is made here: its own making knows no time-out."""
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        run = wandb.init(
            project=self.tracker.project,
            entity=self.tracker.entity,
            name=self.folder.name,
            id=self.run_id,
            resume="allow",
            dir=self.folder,
            mode=mode,
            config=self.config,
            settings=wandb.Settings(console="off", silent=True, init_timeout=INIT_SECONDS, x_disable_stats=True),
        )
        run.define_metric("*", step_metric="samples_seen")
        return WandbLogger(experiment=run)


def open_tracker(
    config: Config, path: Path, mode_and_reason: tuple[str, str], run_id: str, notify: Callable[[str], None]
) -> Tracker:
    """The tracker of a run in `path`; says in one line how an offline run can be shown later.

    Args:
        mode_and_reason: as `wandb_mode` gives them.
        run_id: the run's name for W&B.
        notify: prints a line.
    """
    mode, reason = mode_and_reason
    wandb = None
    if mode != "off":
        wandb = WandbThread(config.tracker, mode, folder=path, run_id=run_id, config=config, notify=notify)
    if mode == "offline":
        notify(f"W&B offline ({reason}); tracker=none switches it off; {sync_hint(path)}")
    context = {
        "run": path.name,
        "model": identity.model_name(config),
        "data": config.data.name,
        "science": identity.science_hash(config),
        "precision": config.compute.precision,
        "versions": provenance.versions_line(provenance.versions()),
    }
    return Tracker(path, context, wandb, notify)


def wandb_mode(tracker: TrackerConfig) -> tuple[str, str]:
    """How W&B will run, and why: online, offline or off.

    Raises:
        UserError: online was asked for and nobody is logged in.
    """
    wanted = os.environ.get("WANDB_MODE", "")
    if tracker.name == "none" or wanted == "disabled":
        return "off", "tracker=none" if tracker.name == "none" else "WANDB_MODE=disabled"
    if wanted in ("offline", "dryrun") or tracker.mode == "offline":
        return "offline", "WANDB_MODE=offline" if wanted else "tracker.mode=offline"
    if logged_in():
        return "online", "logged in"
    if tracker.mode == "online":
        raise UserError(
            "tracker.mode=online: nobody is logged in to W&B here; run `wandb login`, set WANDB_API_KEY, or write "
            "tracker.mode=offline"
        )
    return "offline", "not logged in"


def logged_in() -> bool:
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
    """How what W&B kept on the disk can be shown later."""
    return f"to show the run later: wandb sync {folder}/wandb/offline-run-*"


def _metric_name(record: Record) -> str:
    name = f"{record.task or 'train'}/{record.what}"
    return f"{name}_{record.weights}" if record.weights else name


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
