"""What code and what packages a run was made with: commit, uncommitted changes, versions."""

import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PACKAGES = ("clip-lightning", "torch", "torchvision", "lightning", "timm", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Commit:
    """The state of the checkout.

    Attributes:
        name: short hash, or empty without git.
        changed: files that differ from the commit, as `git status` words them.
        patch: the uncommitted changes of tracked files as a diff.
    """

    name: str
    changed: tuple[str, ...] = ()
    patch: str = ""

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
        return Commit(name, tuple(files), (root / "patch.diff").read_text(encoding="utf-8"))
    if not (root / ".git").exists():
        return Commit("")
    try:
        name = _git(root, "rev-parse", "--short", "HEAD").strip()
        changed = tuple(_git(root, "status", "--porcelain").splitlines())
        return Commit(name, changed, _git(root, "diff", "--binary", "HEAD"))
    except (OSError, subprocess.CalledProcessError):
        return Commit("")


def write(found: Commit, folder: Path) -> None:
    """Keeps what `commit` found beside a copy of the code, in the form that a run's directory has it."""
    (folder / "git.txt").write_text("\n".join([str(found), *found.changed]) + "\n", encoding="utf-8")
    (folder / "patch.diff").write_text(found.patch, encoding="utf-8")


def versions() -> dict[str, str]:
    """Version of each package that decides numbers, and of Python, CUDA and the machine."""
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


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout
