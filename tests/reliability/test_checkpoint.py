"""Checkpoints: whole or not at all, newest that verifies, nothing lost to a kill or a full disk."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clip_lightning.errors import CheckpointError, UserError
from clip_lightning.reliability.checkpoint import MANIFEST, CheckpointFolder, name_of, open_checkpoint


def parts(value: float) -> dict[str, dict]:
    return {"weights": {"w": torch.full((50, 40), value)}, "training": {"optimizers": [{"step": value}]}}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path: Path, said: list[str]) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints", keep_last=2, notify=said.append)


def test_a_saved_checkpoint_loads(folder: CheckpointFolder) -> None:
    folder.save(512, parts(1.5), {"science": "abc"})
    found = folder.newest()
    assert found is not None
    assert (found.samples_seen, found.about) == (512, {"science": "abc"})
    assert torch.equal(found.load("weights")["w"], torch.full((50, 40), 1.5))
    assert found.load("training") == {"optimizers": [{"step": 1.5}]}


def test_the_newest_are_kept_and_no_other_file(folder: CheckpointFolder) -> None:
    for k in range(1, 6):
        folder.save(k * 100, parts(k), {})
    assert sorted(child.name for child in folder.path.iterdir()) == [name_of(400), name_of(500)]


def test_there_is_no_newest_without_any(folder: CheckpointFolder) -> None:
    assert folder.newest() is None


@pytest.mark.slow
def test_one_checkpoint_stays_that_is_old_enough_to_go_back_to(folder: CheckpointFolder) -> None:
    folder.reach = 100
    for number in range(10, 1000, 10):
        folder.save(number, parts(0), {})
        numbers = folder.numbers()
        assert len(numbers) <= 4
        assert number <= 100 or number - 220 <= max(n for n in numbers if n <= number - 100)
    found = folder.newest(at_most=890)
    assert found is not None
    assert 770 <= found.samples_seen <= 890
    folder.remove_after(found.samples_seen)
    assert folder.numbers()[0] == found.samples_seen


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest cut", "no manifest"])
def test_a_damaged_newest_is_reported_and_skipped(folder: CheckpointFolder, said: list[str], damage: str) -> None:
    folder.save(100, parts(1), {})
    folder.save(200, parts(2), {})
    newest = folder.path / name_of(200)
    file = newest / (MANIFEST if "manifest" in damage else "weights.pt")
    content = file.read_bytes()
    if damage in ("missing", "no manifest"):
        file.unlink()
    elif damage == "flip":
        file.write_bytes(content[:-900] + bytes([content[-900] ^ 1]) + content[-899:])
    else:
        file.write_bytes(content[: len(content) // 2])
    found = folder.newest()
    assert found is not None
    assert found.samples_seen == 100
    assert len(said) == 1
    assert str(newest) in said[0]


def test_pruning_keeps_the_last_one_that_verifies(folder: CheckpointFolder) -> None:
    folder.save(100, parts(1), {})
    for number in (200, 300):
        (folder.path / name_of(number)).mkdir()
    folder._prune(2)
    assert folder.numbers() == [300, 200, 100]


def refuse_to_move(monkeypatch: pytest.MonkeyPatch, number: int, error: int) -> None:
    """What a network file system may answer for a folder whose files somebody holds open."""
    rename = Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if self.name == name_of(number):
            raise OSError(error, os.strerror(error), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)


def test_an_old_checkpoint_that_cannot_be_removed_does_not_affect_others(
    folder: CheckpointFolder, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (100, 200):
        folder.save(number, parts(number), {})
    with monkeypatch.context() as patch:
        refuse_to_move(patch, 100, errno.EBUSY)
        assert folder.save(300, parts(300), {})
    assert folder.numbers() == [300, 200, 100]
    (sentence,) = said
    assert sentence.startswith("warning: an old checkpoint cannot be removed now (Device or resource busy: ")
    folder.save(400, parts(400), {})
    assert folder.numbers() == [400, 300]


def test_only_a_full_disk_removes_old_checkpoints_before_a_new_one_is_complete(
    folder: CheckpointFolder, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (100, 200):
        folder.save(number, parts(number), {})
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    assert folder.save(300, parts(300), {}) is None
    monkeypatch.setattr(os, "fsync", fsync)
    assert folder.numbers() == [200, 100]
    assert "cannot take it (Input/output error)" in said[-1]


def test_a_pickle_from_outside_is_refused(folder: CheckpointFolder, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "was here"),)

    folder.save(100, {"weights": Evil()}, {})
    found = folder.newest()
    assert found is not None
    with pytest.raises(CheckpointError, match="cannot be read"):
        found.load("weights")
    assert not (tmp_path / "was here").exists()


def test_a_folder_that_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        open_checkpoint(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"format": 99, "files": {}, "samples_seen": 1, "about": {}}))
    with pytest.raises(CheckpointError, match="format 99"):
        open_checkpoint(tmp_path)


def test_a_full_disk_loses_neither_the_last_checkpoint_nor_the_run(
    folder: CheckpointFolder, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.save(100, parts(1), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # A file may hold 4 kB: the write of the weights fails half-way, as on a disk that is full.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        assert folder.save(200, parts(2), {}) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(said) == 1
    assert "no checkpoint at 200 samples" in said[0]
    found = folder.newest()
    assert found is not None
    assert found.samples_seen == 100
    assert [child.name for child in folder.path.iterdir()] == [name_of(100)]
    folder.save(300, parts(3), {})
    assert folder.numbers() == [300, 100]


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_a_kill_between_renames_keeps_a_checkpoint_of_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rename: int
) -> None:
    """A run saves at a place again after a rollback; with keep_last=1 nothing else is left."""
    folder = CheckpointFolder(tmp_path, keep_last=1)
    folder.save(100, parts(1), {})
    calls, original = [], Path.rename

    def killed(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == rename:
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.save(100, parts(2), {})
    monkeypatch.undo()
    after = CheckpointFolder(tmp_path, keep_last=1)
    found = after.newest()
    assert found is not None
    assert found.load("weights")["w"][0, 0] == (2 if rename == 3 else 1)
    after.save(200, parts(3), {})
    assert [child.name for child in tmp_path.iterdir()] == [name_of(200)]


def test_a_folder_that_takes_no_checkpoint_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in its place")
    with pytest.raises(UserError, match="no checkpoint can be written there"):
        CheckpointFolder(tmp_path / "file", keep_last=2).check_writable(1000)
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=2)
    with pytest.raises(UserError, match=r"checkpoints need .* GiB more"):
        folder.check_writable(2**60)
    folder.check_writable(1000)
    assert list(folder.path.iterdir()) == []


@pytest.mark.ci
@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a small disk")
@pytest.mark.parametrize(("size", "fits"), [("1M", False), ("3M", False), ("16M", True)])
def test_free_space_is_compared_with_two_checkpoints(tmp_path: Path, size: str, fits: bool) -> None:
    program = (
        "import sys; from pathlib import Path; from clip_lightning.reliability.checkpoint import CheckpointFolder\n"
        "from clip_lightning.errors import UserError\n"
        "try: CheckpointFolder(Path(sys.argv[1]), keep_last=2).check_writable(2_000_000)\n"
        "except UserError: sys.exit(2)"
    )
    mounted = f'mount -t tmpfs -o size={size} tmpfs {tmp_path} && exec "$@"'
    command = ["unshare", "--mount", "bash", "-c", mounted, "-", sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this container mounts nothing")
    assert done.returncode == (0 if fits else 2), done.stderr


SAVER = """
import sys, torch
from pathlib import Path
from clip_lightning.reliability.checkpoint import CheckpointFolder
folder = CheckpointFolder(Path(sys.argv[1]), keep_last=2)
print("ready", flush=True)
number = max(folder.numbers(), default=0)
while True:
    number += 1
    folder.save(number, {"weights": {"w": torch.full((200_000,), float(number))}}, {})
"""


@pytest.mark.ci
def test_a_kill_at_any_moment_of_a_save_leaves_a_checkpoint(tmp_path: Path, said: list[str]) -> None:
    draw, reached = random.Random(0), 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.1 + 0.3 * draw.random())
        process.kill()
        process.wait()
        process.stdout.close()
        folder = CheckpointFolder(tmp_path, keep_last=2, notify=said.append)
        found = folder.newest()
        assert found is not None
        assert found.samples_seen >= reached
        assert torch.equal(found.load("weights")["w"], torch.full((200_000,), float(found.samples_seen)))
        reached = found.samples_seen
    assert not said
    folder.remove_temporary()
    assert all(child.name.isdecimal() for child in tmp_path.iterdir())


def test_the_first_past_each_multiple_is_kept_for_good(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1, keep_every=100)
    for number in (40, 80, 120, 160, 200, 240, 280, 320):
        folder.save(number, parts(number), {})
    assert folder.numbers() == [320, 200, 120]
