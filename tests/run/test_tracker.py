"""Numbers reach the run's own records whatever W&B does; no key is read into a config."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clip_lightning.config import compose
from clip_lightning.config.schema import TrackerConfig
from clip_lightning.errors import UserError
from clip_lightning.records import Record, read_records
from clip_lightning.run import tracker
from clip_lightning.run.tracker import open_tracker, wandb_mode


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def rows(num: int) -> list[Record]:
    return [Record(what="loss", value=float(k), samples_seen=k * 16) for k in range(1, num + 1)]


def wandb_records(path: Path) -> list[Any]:
    """The records in W&B's own file: a LevelDB log behind a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record as Stored

    data, position, part, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if (room := 32768 - position % 32768) < 7:
            position += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        part += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            found.append(Stored.FromString(part))
            part = b""
    return found


def test_auto_is_online_where_somebody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wandb_mode(TrackerConfig(name="wandb")) == ("offline", "not logged in")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password abc\n")
    assert wandb_mode(TrackerConfig(name="wandb"))[0] == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_mode(TrackerConfig(name="wandb"))[0] == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert wandb_mode(TrackerConfig(name="wandb"))[0] == "online"
    assert wandb_mode(TrackerConfig(name="wandb", mode="offline"))[0] == "offline"
    assert wandb_mode(TrackerConfig(name="none"))[0] == "off"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode(TrackerConfig(name="wandb"))[0] == "offline"


def test_online_without_a_login_is_refused() -> None:
    with pytest.raises(UserError, match="nobody is logged in"):
        wandb_mode(TrackerConfig(name="wandb", mode="online"))


def test_without_a_tracker_every_number_is_a_record(tmp_path: Path) -> None:
    config = compose.load("train", ["tracker=none"])
    opened = open_tracker(config, tmp_path, ("off", ""), "id", print)
    opened.write(rows(4))
    opened.resume_at(32)
    opened.write([Record(what="loss", value=9.0, samples_seen=48)])
    opened.close()
    for name in ("metrics.jsonl", "records.parquet"):
        found = read_records(tmp_path / name)
        assert [(record.samples_seen, record.value) for record in found] == [(16, 1.0), (32, 2.0), (48, 9.0)]
        assert {record.run for record in found} == {tmp_path.name}
        assert all(len(record.science) == 8 and "torch" in record.versions for record in found)


@pytest.mark.slow
def test_offline_wandb_holds_the_numbers_over_samples_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", secret := "0123456789abcdef" * 2 + "01234567")
    said: list[str] = []
    config = compose.load("train", [])
    opened = open_tracker(config, tmp_path, ("offline", "tracker.mode=offline"), "id123", said.append)
    opened.write(rows(3))
    opened.close()
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


@pytest.mark.slow
@pytest.mark.parametrize("is_silent", [False, True], ids=["refuses", "hangs"])
def test_a_server_that_fails_costs_a_warning_and_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_server: str, is_silent: bool
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
    monkeypatch.setenv("WANDB_BASE_URL", silent_server if is_silent else "http://127.0.0.1:9")
    monkeypatch.setattr(tracker, "INIT_SECONDS", 3)
    said: list[str] = []
    config = compose.load("train", [])
    opened = open_tracker(config, tmp_path, ("online", ""), "id456", said.append)
    begin = time.monotonic()
    opened.write(rows(3))
    assert time.monotonic() - begin < tracker.INIT_SECONDS, "training waited for the server"
    opened.close()
    assert len(said) == 1
    assert "W&B goes on offline" in said[0]
    assert len(read_records(tmp_path / "metrics.jsonl")) == 3
    assert list(tmp_path.glob("wandb/offline-run-*/run-id456.wandb"))
