"""The directory of a run: named by its science, made once, owned by one process at a time, resumed by its own command.

    config.yaml  git.txt  patch.diff  versions.json   frozen at the first start
    data.json            fingerprint of the data and number of pairs
    starts.jsonl         one line per start: time, host, code, command, settings that differ from config.yaml
    first_step.json      samples of the first step, digests of the initial weights
    start.yaml           config of the newest start, which its other ranks read
    status.json          submitted, running, finished, stopped or failed, and why
    failure.txt          traceback of the newest start, if it failed
    divergence.jsonl     steps and sample ids of every divergence, if there was one
    slurm/               of a submitted run: its frozen config and code, its script, its output (`slurm/submit.py`)
    checkpoints/  tokenizer/   metrics.jsonl  records.parquet  summary.json  figures/  report.html

Rank 0 alone writes here. `runs/latest` points to the run that began last.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clip_lightning.config import compose, identity
from clip_lightning.config.schema import Config
from clip_lightning.errors import DataError, UserError
from clip_lightning.file_lock import FileLock
from clip_lightning.reliability import lock
from clip_lightning.reliability.atomic_files import write_atomically
from clip_lightning.reliability.provenance import Commit
from clip_lightning.reliability.run_paths import point_to
from clip_lightning.reliability.status import now, read_json

FAILURE = "failure.txt"
START_CONFIG = "start.yaml"
# Seconds that a run which starts again waits for the lock of its dead process, which a file server may still hold.
RESTART_PATIENCE = 300.0


class RunDirectory:
    """One run's directory, locked for as long as this object or its process lives.

    Attributes:
        path: the directory.
        state: status when it was opened: new, submitted, running (its process died), stopped, failed, or finished.
    """

    def __init__(self, path: Path, patience: float = 0.0) -> None:
        """Makes and locks the directory.

        Args: patience: seconds to wait for another process to release it.
        Raises:
            UserError: another process works in it, or it cannot be made.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"runs={path.parent}: the directory {path} cannot be made ({error.strerror})") from error
        self._lock: FileLock | None = lock.acquire(path, patience)
        self.state = str(read_json(path / "status.json").get("status", "new"))

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.path / "checkpoints"

    @property
    def num_starts(self) -> int:
        """How often a run has started or resumed here."""
        starts = self.path / "starts.jsonl"
        return len(starts.read_text(encoding="utf-8").splitlines()) if starts.exists() else 0

    def begin(
        self,
        config: Config,
        *,
        commit: Commit,
        versions: dict[str, str],
        data: dict[str, Any],
        argv: Sequence[str] = (),
    ) -> None:
        """Freezes a new run's config, code and data, or compares them with an earlier start's; records this start.

        Args:
            data: `fingerprint` and `num_samples` of the data.
            argv: the arguments of the command.
        Raises:
            DataError: the data differs from that of the first start.
            UserError: the directory holds another run.
        """
        frozen = self.path / "config.yaml"
        changed: list[str] = []
        if not frozen.exists():
            write_atomically(self.path / "data.json", json.dumps(data, indent=1) + "\n")
            write_atomically(self.path / "versions.json", json.dumps(versions, indent=1) + "\n")
            write_atomically(self.path / "git.txt", "\n".join([str(commit), *commit.changed]) + "\n")
            write_atomically(self.path / "patch.diff", commit.patch)
            write_atomically(frozen, identity.redacted(compose.dump(config)))
        else:
            changed = compare_data(self.path, data, config)
            before = compare_science(self.path, config)
            changed += [identity.redacted(line) for line in identity.diff(asdict(before), asdict(config))]
        (self.path / FAILURE).unlink(missing_ok=True)
        start = {
            "time": now(),
            "host": socket.gethostname(),
            "commit": str(commit),
            "command": [identity.redacted(word) for word in argv],
            "changed": changed,
        }
        with (self.path / "starts.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(start) + "\n")
        point_to(self.path, self.path.parent / "latest")

    def write_start_config(self, text: str) -> None:
        """Writes the config of this start for its other ranks, readable by this user only: a URL may hold a secret."""
        temporary = self.path / f".{START_CONFIG}.writing"
        temporary.unlink(missing_ok=True)
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
        ) as stream:
            stream.write(text)
        temporary.replace(self.path / START_CONFIG)

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            lock.release(self._lock)
            self._lock = None


def compare_science(path: Path, config: Config) -> Config:
    """The frozen config of a run's directory. Raises UserError where its science differs and is not allowed to."""
    before = compose.read(path / "config.yaml")
    changes = identity.diff(identity.science(before), identity.science(config))
    if science := [change for change in changes if change.split(":")[0] not in config.allow_changed]:
        names = ",".join(change.split(":")[0] for change in changes)
        raise UserError(
            f"{path} holds another run ({'; '.join(science)}); rename it, continue as this run by "
            f"allow_changed=[{names}], or write fresh=true"
        )
    return before


def compare_data(path: Path, data: dict[str, Any], config: Config) -> list[str]:
    """How the data differs from that of the first start in a run's directory, one phrase for each difference.

    Args:
        path: the run's directory.
        data: what `data.json` holds: `fingerprint`, `num_samples`, and `validation` where it has data of its own.

    Raises:
        DataError: it differs, and `allow_changed` does not name `data`.
    """
    before = read_json(path / "data.json")
    changed = [f"{key} {before.get(key)} -> {data[key]}" for key in data if before.get(key, data[key]) != data[key]]
    if changed and "data" not in config.allow_changed:
        raise DataError(
            f"{path}: the data is not what this run began with ({', '.join(changed)}); put the earlier data back, "
            f"give this data another name by data.name={config.data.name}_2, continue with it by "
            "allow_changed=[data], or start over with fresh=true"
        )
    return changed
