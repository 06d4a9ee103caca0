"""The built wheel trains and evaluates without the checkout."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["clip_lightning", "conf", "hydra_plugins", "slurm", "pyproject.toml", "README.md", "LICENSE"]


def output(command: list[str], **settings: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves build/ beside what it reads."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = output(["git", "ls-files", "--cached", "--others", "--exclude-standard", *SOURCES], cwd=ROOT)
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    output([*command, str(folder / "source")])
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_pyproject_lists_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    files = [path for name in ("clip_lightning", "hydra_plugins") for path in (ROOT / name).rglob("*.py")]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in files}
    assert set(listed["packages"]) - set(listed["package-dir"]) == found


@pytest.mark.slow
def test_the_wheel_holds_every_preset_and_data_file_and_no_other_top_level_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if not name.split("/")[0].endswith("dist-info")}
    assert tops == {"clip_lightning", "hydra_plugins"}
    presets = output(["git", "ls-files", "conf/*.yaml", "conf/**/*.yaml"], cwd=ROOT).splitlines()
    assert {f"clip_lightning/{name}" for name in presets if (ROOT / name).exists()} <= set(names)
    files = output(["git", "ls-files", "clip_lightning"], cwd=ROOT).splitlines()
    assert not [name for name in files if (ROOT / name).exists() and name not in names]


@pytest.mark.ci
def test_an_installed_wheel_trains_and_evaluates(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    output([*pip, str(wheel)])
    run = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(site)}}
    code = "import clip_lightning; print(clip_lightning.__file__)"
    assert Path(output([sys.executable, "-c", code], **run).strip()).is_relative_to(site)
    command = str(site / "bin" / "clip-lightning")
    brief = ["logger=none", "cluster.workers=0", "eval.tasks=[handwritten_digits]", "eval.every=0 samples"]
    brief.append("compute.precision=fp32")
    printed = output([sys.executable, command, "train", "compute.duration=20 steps", *brief], **run)
    assert "clip-lightning train 'compute.duration=20 steps'" in printed
    assert "python" not in printed.split("directory  ")[-1]
    printed = output([sys.executable, command, "evaluate", "run=runs/latest"], **run)
    assert "handwritten_digits" in printed
    # Hydra finds the launcher in the installed package.
    code = "from hydra.core.plugins import Plugins; from hydra.plugins.launcher import Launcher; "
    code += "print([found.__module__ for found in Plugins.instance().discover(Launcher)])"
    assert "hydra_plugins.clip_lightning_slurm.launcher" in output([sys.executable, "-c", code], **run)
