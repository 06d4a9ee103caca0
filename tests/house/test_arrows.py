"""Imports between packages: a package may import those to its left; packages of one tier do not import each other."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIERS: list[set[str]] = [
    {"errors"},
    {
        "records",
        "run_folders",
        "score_names",
        "child_process",
        "file_lock",
        "distributed",
        "formatting",
        "targets",
        "compat",
    },
    {"config"},
    {"tokenizer"},
    {"model", "loss", "data"},
    {"parallel", "reliability", "evaluation"},
    {"training"},
    {"slurm"},
    {"report"},
    {"run"},
    {"demo", "embed", "export", "runs", "list"},
    {"__main__"},
    {"train.py", "evaluate.py", "experiments", "hydra_plugins"},
]
# These see tables only, whatever stands to their left. `run` and `experiments` may draw with plots.
TABLES_ONLY = {
    name: {"errors", "records", "run_folders", "formatting", "targets", "config"} for name in ("scaling", "plots")
}
DRAWERS = {"run", "runs", "report", "demo", "experiments"}


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return Path(parts[1]).stem if parts[0] == "clip_lightning" else parts[0]


def imported_packages(path: Path) -> Iterator[tuple[str, int]]:
    """The packages of clip_lightning that a file imports anywhere, also inside functions, and where."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "clip_lightning" and len(parts) > 1 and parts[1] not in ("__version__", "load"):
                yield parts[1], node.lineno


def allowed(package: str) -> set[str]:
    if package in TABLES_ONLY:
        return TABLES_ONLY[package]
    left: set[str] = set()
    for tier in TIERS:
        if package in tier:
            return left | ({"plots", "scaling"} if package in DRAWERS else set())
        left |= tier
    raise AssertionError(f"{package} is in no tier: give it one in this test and in docs/design.md")


def sources() -> list[Path]:
    folders = ["clip_lightning", "experiments", "hydra_plugins"]
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return files + [path for path in (ROOT / "train.py", ROOT / "evaluate.py") if path.exists()]


@pytest.mark.slow
def test_packages_import_only_to_their_left() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {package_of(path)} imports {package}"
        for path in sources()
        if package_of(path) != "__init__"
        for package, line in imported_packages(path)
        if package != package_of(path)
        if package not in allowed(package_of(path))
        if not (path.name == "__main__.py" and package == "plots")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_package_itself_imports_nothing() -> None:
    tree = ast.parse((ROOT / "clip_lightning/__init__.py").read_text(encoding="utf-8"))
    found = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert set(found) <= {"importlib", "typing"}, "its names are imported when they are used"
    assert not [node for node in tree.body if isinstance(node, ast.Import)]


TORCHLESS = ("errors", "config.schema", "config.checks", "config.compose", "config.identity", "tokenizer")


@pytest.mark.parametrize("module", TORCHLESS)
def test_leaf_modules_load_without_torch(module: str) -> None:
    code = f"import sys, clip_lightning.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
