"""Numbers reach the run's own records whatever W&B does; no key is read into a config."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from clip_lightning.config import compose
from clip_lightning.errors import UserError
from clip_lightning.records import Record, read_records
from clip_lightning.run import wandb_logger
from clip_lightning.run.loggers import Loggers, build_loggers, check_loggers
from clip_lightning.run.run_records import RunRecords
from clip_lightning.run.wandb_logger import resolve_mode
from tests.support.wandb_files import wandb_records


@pytest.fixture(autouse=True)
def without_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def rows(num: int) -> list[Record]:
    return [Record(what="loss", value=float(k), samples_seen=k * 16) for k in range(1, num + 1)]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., list[str]]:
    """Writes rows through the records and the loggers of a command; gives what they printed."""

    def write(*argv: str) -> list[str]:
        said: list[str] = []
        config = compose.load("train", list(argv))
        records = RunRecords(config, tmp_path, said.append)
        loggers = Loggers(build_loggers(config, tmp_path), tmp_path, config, said.append)
        begin = time.monotonic()
        loggers.write(records.write(rows(3)))
        assert time.monotonic() - begin < wandb_logger.INIT_SECONDS, "training waited for the server"
        records.close()
        loggers.finish()
        return said

    return write


def test_auto_is_online_where_somebody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_mode("auto") == ("offline", "not logged in")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password abc\n")
    assert resolve_mode("auto")[0] == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert resolve_mode("auto")[0] == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert resolve_mode("auto")[0] == "online"
    assert resolve_mode("offline")[0] == "offline"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_mode("auto")[0] == "offline"


def test_online_without_a_login_is_refused() -> None:
    with pytest.raises(UserError, match="there is no W&B login"):
        resolve_mode("online")


def test_without_a_logger_every_number_is_a_record(tmp_path: Path) -> None:
    records = RunRecords(compose.load("train", ["logger=none"]), tmp_path)
    records.write(rows(4))
    records.resume_at(32)
    records.write([Record(what="loss", value=9.0, samples_seen=48)])
    records.close()
    for name in ("metrics.jsonl", "records.parquet"):
        found = read_records(tmp_path / name)
        assert [(record.samples_seen, record.value) for record in found] == [(16, 1.0), (32, 2.0), (48, 9.0)]
        assert {record.run for record in found} == {tmp_path.name}
        assert all(len(record.science) == 8 and "torch" in record.versions for record in found)


def test_a_logger_that_fails_costs_one_warning(tmp_path: Path) -> None:
    class Failing(CSVLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            raise ConnectionError("no server")

    said: list[str] = []
    config = compose.load("train", ["logger=none"])
    loggers = Loggers([Failing(tmp_path), CSVLogger(tmp_path, name="csv")], tmp_path, config, said.append)
    loggers.write(rows(3))
    loggers.finish()
    (warning,) = said
    assert "Failing" in warning
    assert len((tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["logger.mine._target_=no_such_package.Logger"], "logger.mine._target_"),
        (["logger=csv", "logger.csv.names=x"], "logger.csv.names"),
        (["logger.wandb.mode=sometimes"], "logger.wandb.mode=sometimes"),
    ],
)
def test_a_wrong_logger_is_refused(argv: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_loggers(compose.load("train", argv))


@pytest.mark.slow
def test_offline_wandb_holds_the_numbers_over_samples_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[..., list[str]]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", secret := "0123456789abcdef" * 2 + "01234567")
    (tmp_path / "wandb_id.txt").write_text("id123\n")
    said = opened("logger.wandb.mode=offline")
    assert len(said) == 1
    assert "wandb sync" in said[0]
    (file,) = tmp_path.glob("wandb/offline-run-*/run-id123.wandb")
    end = time.monotonic() + 30  # W&B's own process writes the file
    while not (history := [stored.history for stored in wandb_records(file) if stored.HasField("history")]):
        assert time.monotonic() < end
        time.sleep(0.1)
    items = [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in h.item} for h in history]
    assert [(item["samples_seen"], item["train/loss"]) for item in items] == [(16, 1.0), (32, 2.0), (48, 3.0)]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


START_PROGRAM = """
from pathlib import Path
from clip_lightning.config import compose
from clip_lightning.run.wandb_logger import WandbLogger
logger = WandbLogger(mode="offline")
logger.start(Path(), compose.load("train", []), print)
logger.finish()
"""


@pytest.mark.ci
def test_wandb_is_imported_in_the_main_thread_as_loader_processes_may_be_forked_later(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "wandb.py").write_text("import threading\nprint('imported in', threading.current_thread().name)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}
    command = [sys.executable, "-c", START_PROGRAM]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "imported in MainThread" in done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("is_silent", [False, True], ids=["refuses", "hangs"])
def test_a_server_that_fails_costs_a_warning_and_no_number(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened: Callable[..., list[str]],
    silent_server: str,
    is_silent: bool,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
    monkeypatch.setenv("WANDB_BASE_URL", silent_server if is_silent else "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_logger, "INIT_SECONDS", 3)
    (tmp_path / "wandb_id.txt").write_text("id456\n")
    said = opened()
    assert len(said) == 1
    assert "W&B continues offline" in said[0]
    assert len(read_records(tmp_path / "metrics.jsonl")) == 3
    assert list(tmp_path.glob("wandb/offline-run-*/run-id456.wandb"))
