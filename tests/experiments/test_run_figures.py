"""The figures of a run are drawn again from its records and its checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MODULE = "experiments.figures.run_figures"


def command(root: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.ci
def test_a_run_gets_its_three_figures_again(root: Path, tmp_path: Path) -> None:
    settings = ["compute.duration=2 steps", "compute.global_batch=32", "compute.warmup=0 samples", "logger=none"]
    small = ["data.validation.num_samples=32", "eval.tasks=[handwritten_digits]"]
    trained = command(root, "train.py", f"runs={tmp_path}", *settings, *small)
    assert trained.returncode == 0, trained.stderr
    figures = (tmp_path / "latest").resolve() / "figures"
    names = ["loss.png", "predictions.png", "zero_shot.png"]
    for name in names:
        (figures / name).unlink()
    drawn = command(root, "-m", MODULE, figures.parent, "--images", 2)
    assert drawn.returncode == 0, drawn.stderr
    assert sorted(drawn.stdout.split()) == [str(figures / name) for name in names]
    assert all((figures / name).read_bytes().startswith(b"\x89PNG") for name in names)
    wrong = command(root, "-m", MODULE, figures.parent, "--tasks", "handwriten_digits")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "did you mean handwritten_digits?" in wrong.stderr


def test_a_folder_that_is_not_a_run_is_refused(root: Path, tmp_path: Path) -> None:
    done = command(root, "-m", MODULE, tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == f"{tmp_path} is not the directory of a run: it has no metrics.jsonl."
