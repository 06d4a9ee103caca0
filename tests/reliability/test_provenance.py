"""The patch that a run keeps: with the commit it gives the tree that was trained, byte for byte."""

import subprocess
from pathlib import Path

import pytest

from clip_lightning.reliability import provenance
from clip_lightning.reliability.provenance import LARGEST_FILE, Commit, commit, write
from clip_lightning.slurm.submit import keep_code


def git(root: Path, *arguments: str) -> None:
    command = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit, two changed files and new ones."""
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "-q")
    (root / "a.py").write_bytes(b"one\n")
    (root / "image.bin").write_bytes(bytes(range(256)))
    (root / ".gitignore").write_text("ignored.txt\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    (root / "a.py").write_bytes(b"# caf\xe9\ntwo\n")  # Latin-1
    (root / "image.bin").write_bytes(bytes(range(255, -1, -1)))
    (root / "new folder").mkdir()
    (root / "new folder" / "b \u00e9.py").write_bytes(b"no newline at the end, \xff")
    (root / "empty.txt").touch()
    return root


def test_git_apply_reproduces_the_tree(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "config", "diff.noprefix", "true")
    found = commit(checkout)
    kept = tmp_path / "kept"
    kept.mkdir()
    write(found, kept)
    assert commit(kept) == found
    git(tmp_path, "clone", "-q", str(checkout), "again")
    git(tmp_path / "again", "apply", str(kept / "patch.diff"))
    files = [path.relative_to(checkout) for path in checkout.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (checkout / file).read_bytes(), file


def test_large_binary_ignored_and_local_files_are_left_out(checkout: Path) -> None:
    (checkout / "large.txt").write_bytes(b"a" * (LARGEST_FILE + 1))
    (checkout / "new.bin").write_bytes(b"\0\1")
    (checkout / "ignored.txt").write_text("x")
    (checkout / "conf" / "local").mkdir(parents=True)
    (checkout / "conf" / "local" / "mine.yaml").write_text("password: x")
    found = commit(checkout)
    for name in (b"large.txt", b"new.bin", b"b/ignored.txt", b"mine.yaml"):
        assert name not in found.patch
    assert any("large.txt" in line for line in found.changed)


def test_a_copy_of_the_code_has_no_settings_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "checkout"
    (root / "conf" / "local").mkdir(parents=True)
    (root / "conf" / "train.yaml").touch()
    (root / "conf" / "local" / "mine.yaml").write_text("password: x")
    monkeypatch.setattr(provenance, "ROOT", root)
    assert commit(root) == Commit("")
    kept = keep_code(tmp_path / "store")
    assert (kept / "conf" / "train.yaml").exists()
    assert not (kept / "conf" / "local").exists()
