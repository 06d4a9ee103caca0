"""A run's directory: named by its science, owned by one process, nothing of an earlier run lost."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clip_lightning.config import compose, identity
from clip_lightning.errors import DataError, UserError
from clip_lightning.reliability.lock import is_at_work
from clip_lightning.reliability.provenance import Commit, commit
from clip_lightning.reliability.run_paths import directory_of, move_aside, point_to
from clip_lightning.reliability.status import read_json, write_status
from clip_lightning.run.directory import RunDirectory

DATA = {"fingerprint": "0123", "num_samples": 10}
COMMIT = Commit("abc1234", (" M a.py",), "diff --git a/a.py\n")


@pytest.fixture
def config(tmp_path: Path) -> Any:
    return compose.load("train", [f"runs={tmp_path}", "logger=none"])


def begin(config: Any, data: dict[str, Any] = DATA) -> RunDirectory:
    directory = RunDirectory(directory_of(config))
    try:
        directory.begin(config, commit=COMMIT, versions={"torch": "2"}, data=data, argv=["a=1"])
    except DataError:
        directory.close()
        raise
    return directory


def test_the_first_start_freezes_config_code_and_versions(config: Any, tmp_path: Path) -> None:
    begin(config).close()
    path = tmp_path / identity.run_name(config)
    assert compose.read(path / "config.yaml") == config
    assert (path / "git.txt").read_text() == "commit abc1234 (1 file changed)\n M a.py\n"
    assert (path / "patch.diff").read_text() == COMMIT.patch
    assert read_json(path / "versions.json") == {"torch": "2"}
    assert (tmp_path / "latest").resolve() == path.resolve()
    assert not (tmp_path / "latest").readlink().is_absolute()


def test_a_later_start_keeps_what_was_frozen_and_notes_what_differs(config: Any, tmp_path: Path) -> None:
    begin(config).close()
    frozen = (tmp_path / "latest" / "config.yaml").read_text()
    config.cluster.workers = 7
    directory = begin(config)
    assert directory.num_starts == 2
    assert (tmp_path / "latest" / "config.yaml").read_text() == frozen
    last = json.loads((tmp_path / "latest" / "starts.jsonl").read_text().splitlines()[-1])
    assert last["changed"] == ["cluster.workers: 2 -> 7"]


def test_changed_data_is_refused_with_the_difference(config: Any) -> None:
    begin(config).close()
    with pytest.raises(DataError, match=r"fingerprint 0123 -> 4567, num_samples 10 -> 9"):
        begin(config, {"fingerprint": "4567", "num_samples": 9})


def test_a_change_that_is_allowed_by_name_is_noted_and_no_other(config: Any, tmp_path: Path) -> None:
    begin(config).close()
    path = directory_of(config)
    config.compute.seed, config.compute.learning_rate = 5, 0.5
    path.rename(directory_of(config))
    config.allow_changed = ["compute.seed", "data"]
    directory = RunDirectory(directory_of(config))
    changed_data = {"fingerprint": "4567", "num_samples": 10}
    with pytest.raises(UserError, match=r"holds another run .compute.learning_rate: [^;]* -> 0.5."):
        directory.begin(config, commit=COMMIT, versions={}, data=changed_data)
    config.allow_changed.append("compute.learning_rate")
    directory.begin(config, commit=COMMIT, versions={}, data=changed_data)
    directory.close()
    last = json.loads((directory.path / "starts.jsonl").read_text().splitlines()[-1])
    assert "fingerprint 0123 -> 4567" in last["changed"]
    assert "compute.seed: 0 -> 5" in last["changed"]


def test_a_directory_that_was_renamed_to_another_run_is_refused(config: Any) -> None:
    begin(config).close()
    path = directory_of(config)
    config.compute.seed = 5
    path.rename(directory_of(config))
    directory = RunDirectory(directory_of(config))
    with pytest.raises(UserError, match=r"holds another run .compute.seed: 0 -> 5."):
        directory.begin(config, commit=COMMIT, versions={}, data=DATA)
    directory.close()


HOLDER = """
import sys, time
from pathlib import Path
from clip_lightning.run.directory import RunDirectory
directory = RunDirectory(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True, cwd=root)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(UserError, match=f"another process is at work in this run .process {holder.pid} on "):
            RunDirectory(path)
        with pytest.raises(UserError, match="another process"):
            move_aside(path)
    finally:
        holder.kill()
        holder.communicate()
    RunDirectory(path).close()


FORKING_HOLDER = """
import os, sys, time
from pathlib import Path
from clip_lightning.run.directory import RunDirectory
directory = RunDirectory(Path(sys.argv[1]))
reader, writer = os.pipe()
child = os.fork()
if child:
    os.read(reader, 1)
    print(child, flush=True)
else:
    os.write(writer, b"r")
time.sleep(60)
"""


@pytest.mark.slow
def test_a_forked_loader_process_does_not_keep_the_lock(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", FORKING_HOLDER, path], stdout=subprocess.PIPE, text=True, cwd=root)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    try:
        RunDirectory(path).close()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_job_stays_in_the_directory_it_was_submitted_in(config: Any, tmp_path: Path) -> None:
    frozen = tmp_path / "submitted" / "slurm" / "config.yaml"
    frozen.parent.mkdir(parents=True)
    argv = ["--frozen", str(frozen)]
    named = tmp_path / identity.run_name(config)
    assert directory_of(config, argv) == named  # no job has this config
    (frozen.parent / "job.txt").write_text("12\n")
    assert directory_of(config, argv) == tmp_path / "submitted"
    assert directory_of(config, ["compute.seed=0"]) == directory_of(config) == named


def test_starting_over_moves_every_earlier_run_aside(config: Any, tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        begin(config).close()
        aside = move_aside(directory_of(config))
        assert aside is not None
        names.append(aside.name)
    name = identity.run_name(config)
    assert names == [f"{name}.old-{k}" for k in (1, 2, 3)]
    assert all((tmp_path / old / "config.yaml").exists() for old in names)
    assert move_aside(directory_of(config)) is None


def test_status_keeps_numbers_until_they_are_set_again(tmp_path: Path) -> None:
    write_status(tmp_path, "running", samples_seen=5, total_samples=10)
    write_status(tmp_path, "failed", "the disk burnt")
    status = read_json(tmp_path / "status.json")
    assert (status["status"], status["reason"], status["samples_seen"]) == ("failed", "the disk burnt", 5)


def test_a_folder_that_is_called_latest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "run").mkdir()
    point_to(tmp_path / "run", tmp_path / "latest")
    assert not (tmp_path / "latest").is_symlink()


def test_the_commit_lists_what_was_changed_and_is_empty_without_git(tmp_path: Path) -> None:
    assert commit(tmp_path) == Commit("")
    assert str(Commit("")) == "no commit"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a.txt").write_text("one\n")
    subprocess.run([*git, "add", "a.txt"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    assert str(commit(tmp_path)).count("(") == 0
    (tmp_path / "a.txt").write_text("two\n")
    (tmp_path / "b.txt").write_text("new\n")
    found = commit(tmp_path)
    assert str(found).endswith("(2 files changed)")
    assert b"+two" in found.patch


def test_a_file_system_without_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"this file system has no locks \(No locks available\)"):
        RunDirectory(tmp_path / "run")
    assert not is_at_work(tmp_path / "run")
