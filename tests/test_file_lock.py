"""Locks between processes of one host, and between hosts whose file system keeps flocks to itself."""

import json
import os
import time
from pathlib import Path

import pytest

from clip_lightning import file_lock
from clip_lightning.file_lock import FileLock, is_held


def own_from_another_host(path: Path, age: float) -> Path:
    """What a process of another host leaves beside a lock: no flock shows here."""
    path.touch()
    owner = path.with_name(path.name + file_lock.OWNER)
    owner.write_text(json.dumps({"host": "other", "owner": "process 7 on other, job 12"}))
    os.utime(owner, (time.time() - age,) * 2)
    return owner


def test_a_lock_excludes_until_it_is_released(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert is_held(tmp_path / "lock")
    assert not second.acquire()
    assert f"process {os.getpid()} on " in second.owner()
    first.release()
    assert not is_held(tmp_path / "lock")
    assert second.acquire()
    second.release()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_live_owner_on_another_host_excludes_and_a_stale_one_does_not(tmp_path: Path) -> None:
    own_from_another_host(tmp_path / "lock", age=file_lock.STALE / 2)
    lock = FileLock(tmp_path / "lock")
    assert is_held(tmp_path / "lock")
    assert not lock.acquire()
    assert lock.owner() == "process 7 on other, job 12"
    own_from_another_host(tmp_path / "lock", age=file_lock.STALE + 1)
    assert not is_held(tmp_path / "lock")
    assert lock.acquire()
    lock.release()


def test_the_heartbeat_keeps_a_lock_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lock, "HEARTBEAT", 0.01)
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    lock.beat_by_thread()
    os.utime(lock.owner_path, (0, 0))
    end = time.monotonic() + 10
    while time.time() - lock.owner_path.stat().st_mtime > 5:
        assert time.monotonic() < end
        time.sleep(0.01)
    lock.release()


def test_a_forked_child_does_not_keep_a_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    lock.release()
    assert FileLock(tmp_path / "lock").acquire()
    os.close(writer)
    os.waitpid(child, 0)
