"""What code and what packages a run was made with: commit, uncommitted changes, versions."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A user's own settings, relative to the checkout: left out of copies and patches.
LOCAL = "conf/local/"
LARGEST_FILE, _MOST_FILES = 256 * 1024, 500
# What a user's settings of git may change is set again here.
_DIFF = (
    "-c",
    "diff.noprefix=false",
    "-c",
    "diff.mnemonicPrefix=false",
    "diff",
    "--binary",
    "--no-color",
    "--no-ext-diff",
)
_PACKAGES = ("clip-lightning", "torch", "torchvision", "lightning", "timm", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Commit:
    """The state of the checkout.

    Attributes:
        name: short hash, or empty without git.
        changed: files that differ from the commit, as `git status` words them.
        patch: the uncommitted changes as `git apply` takes them, in the bytes of the files: those of tracked files, and
            untracked text files that git does not ignore, of at most `LARGEST_FILE` bytes each.
    """

    name: str
    changed: tuple[str, ...] = ()
    patch: bytes = b""

    def __str__(self) -> str:
        if not self.name:
            return "no commit"
        count = len(self.changed)
        return f"commit {self.name}" + (f" ({count} file{'s' * (count != 1)} changed)" if count else "")


def commit(root: Path = ROOT) -> Commit:
    """The commit of a checkout, or the one that `write` has kept; an empty one for a package, and without git."""
    if (root / "git.txt").is_file():
        head, *files = (root / "git.txt").read_text(encoding="utf-8").splitlines()
        name = head.removeprefix("commit ").split(" ")[0] if head.startswith("commit ") else ""
        return Commit(name, tuple(files), (root / "patch.diff").read_bytes())
    if not (root / ".git").exists():
        return Commit("")
    try:
        name = _git(root, "rev-parse", "--short", "HEAD").decode().strip()
        changed = tuple(_git(root, "status", "--porcelain").decode(errors="replace").splitlines())
        return Commit(name, changed, _git(root, *_DIFF, "HEAD") + _untracked(root))
    except (OSError, subprocess.CalledProcessError):
        return Commit("")


def write(found: Commit, folder: Path) -> None:
    """Keeps what `commit` found beside a copy of the code, in the form that a run's directory has it."""
    (folder / "git.txt").write_text("\n".join([str(found), *found.changed]) + "\n", encoding="utf-8")
    (folder / "patch.diff").write_bytes(found.patch)


def versions() -> dict[str, str]:
    """Version of each package that decides numbers, and of Python, CUDA and the platform."""
    import torch  # here, since a submission needs no torch

    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions_line(found: dict[str, str]) -> str:
    """The versions that stand in every record: "torch 2.14.1, lightning 2.6.6, ..."."""
    return ", ".join(
        f"{name} {found[name]}" for name in ("clip-lightning", "torch", "lightning", "timm", "transformers")
    )


def _untracked(root: Path) -> bytes:
    """Untracked text files as a diff from nothing; without a user's own settings, which may hold secrets."""
    names = _git(root, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
    files = [os.fsdecode(name) for name in names if name and not name.startswith(os.fsencode(LOCAL))]
    diffs = [
        # Exit code 1: the two differ.
        _git(root, *_DIFF, "--no-index", "--", os.devnull, name, codes=(0, 1))
        for name in files[:_MOST_FILES]
        if _is_small_text(root / name)
    ]
    return b"".join(diffs)


def _is_small_text(file: Path) -> bool:
    """Text as git has it: no NUL byte near the beginning."""
    if file.is_symlink() or not file.is_file() or file.stat().st_size > LARGEST_FILE:
        return False
    with file.open("rb") as stream:
        return b"\0" not in stream.read(8000)


def _git(root: Path, *arguments: str, codes: tuple[int, ...] = (0,)) -> bytes:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode not in codes:
        raise subprocess.CalledProcessError(done.returncode, command)
    return done.stdout
