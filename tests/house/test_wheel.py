"""The built wheel serves the library without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


SHIPPED = ["clip_lightning", "hydra_plugins", "pyproject.toml", "README.md", "LICENSE"]
ROOMS = ["model.clip", "loss", "data.datamodule", "evaluation.tasks", "config.compose"]


def output(command: list[str], **settings: Any) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, **settings).stdout


@pytest.mark.slow
def test_wheel_installs_and_its_rooms_import(tmp_path: Path) -> None:
    # Built from a copy: setuptools leaves build/ beside what it reads.
    listed = output(["git", "ls-files", "--cached", "--others", "--exclude-standard", *SHIPPED], cwd=ROOT)
    for name in listed.splitlines():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    output(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(tmp_path),
            str(tmp_path / "source"),
        ]
    )
    (wheel,) = tmp_path.glob("*.whl")
    installed = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    names = {name for name in installed if not name.endswith("dist-info")}
    assert names <= {"clip_lightning", "hydra_plugins"}, "a wheel installs no top-level name but ours"
    site = tmp_path / "site"
    output(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(site),
            str(wheel),
        ]
    )
    code = "".join(f"import clip_lightning.{room}; " for room in ROOMS) + "print(clip_lightning.__file__)"
    found = output([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)})
    assert Path(found.strip()).is_relative_to(site)
    # Hydra finds the launcher in the installed package.
    code = "from hydra.core.plugins import Plugins; from hydra.plugins.launcher import Launcher; "
    code += "print([found.__module__ for found in Plugins.instance().discover(Launcher)])"
    found = output([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)})
    assert "hydra_plugins.clip_lightning_slurm.launcher" in found
