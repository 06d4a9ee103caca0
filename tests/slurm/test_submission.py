"""What a run's directory says while its job is submitted; sbatch and squeue are scripts that say what a test wants."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_lightning.config import compose
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError
from clip_lightning.reliability.run_paths import directory_of
from clip_lightning.slurm import submit as slurm

Commands = Callable[..., None]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Gives commands of SLURM their bodies, in bash."""

    def write(**bodies: str) -> None:
        for name, body in bodies.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
            (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    write(squeue="true", sbatch="echo 12")
    return write


@pytest.fixture
def config(tmp_path: Path) -> Config:
    argv = [f"runs={tmp_path / 'runs'}", "cluster=slurm_debug", "cluster.accelerator=cpu", "logger=none"]
    config: Config = compose.load("train", argv, check=False)
    return config


def status(config: Config) -> dict[str, str]:
    found: dict[str, str] = json.loads((directory_of(config) / "status.json").read_text())
    return found


def test_a_queue_that_cannot_be_read_is_not_taken_for_an_empty_one(
    commands: Commands, config: Config, tmp_path: Path
) -> None:
    slurm.submit(config)
    assert (status(config)["status"], status(config)["reason"]) == ("submitted", "job 12")
    commands(squeue="echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", sbatch="exit 9")
    with pytest.raises(UserError) as refusal:
        slurm.submit(config)
    (sentence,) = refusal.value.problems
    assert "squeue does not report the waiting jobs (" in sentence
    assert "Unable to contact slurm controller)" in sentence


def test_the_status_of_a_job_that_starts_at_once_is_kept(commands: Commands, config: Config) -> None:
    file = directory_of(config) / "status.json"
    commands(sbatch=f"""grep -q '"submitted"' '{file}' || exit 1; echo '{{"status": "failed"}}' >'{file}'; echo 12""")
    slurm.submit(config)
    assert status(config) == {"status": "failed"}


def test_a_refused_job_leaves_the_status_of_the_run_unchanged(commands: Commands, config: Config) -> None:
    file = directory_of(config) / "status.json"
    commands(sbatch="echo 'sbatch: error: no such partition' >&2; exit 1")
    with pytest.raises(UserError, match="no such partition"):
        slurm.submit(config)
    assert not file.exists()
    file.write_text('{"status": "stopped"}')
    with pytest.raises(UserError, match="no such partition"):
        slurm.submit(config)
    assert status(config) == {"status": "stopped"}
