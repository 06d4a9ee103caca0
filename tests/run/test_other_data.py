"""Other data under the name of a finished run is refused, for training and for validation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.small_data import pairs, write_tar


def train(root: Path, runs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "train.py", f"runs={runs}", "model=tiny", "data=cc12m", "compute=cpu_minutes", *words]
    command += ["compute.duration=1 steps", "compute.global_batch=4", "cluster.workers=0", "logger=none", "eval=none"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.ci
def test_a_finished_run_is_reported_for_its_own_data_only(tmp_path: Path, root: Path) -> None:
    for name, first in (("a", 0), ("b", 100), ("v", 200), ("w", 300)):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "0.tar", pairs(first, 12))
    own = [f"data.path={tmp_path / 'a'}", f"data.validation.path={tmp_path / 'v'}"]
    assert train(root, tmp_path, *own).returncode == 0
    assert json.loads((tmp_path / "latest/data.json").read_text()).keys() >= {"fingerprint", "validation"}
    again = train(root, tmp_path, *own)
    assert (again.returncode, "is finished" in again.stdout) == (0, True)
    for name, path in (("data.path", "b"), ("data.validation.path", "w")):
        changed = [word for word in own if not word.startswith(f"{name}=")] + [f"{name}={tmp_path / path}"]
        other = train(root, tmp_path, *changed)
        assert (other.returncode, "is finished" in other.stdout) == (1, False)
        assert "data.name=cc12m_2" in other.stderr
