"""README's commands are true: each is run here, or composed and checked where it needs data or hours."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clip_lightning.config import compose

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"`(python [^`\n]+)`", "\n".join(page.read_text(encoding="utf-8") for page in PAGES))))
SHOWN_FOR_THEIR_FORM = {"python train.py key=value", "python train.py model=vit_l14x"}
TRAINING = [
    command for command in COMMANDS if command.startswith("python train.py") and command not in SHOWN_FOR_THEIR_FORM
]
MODULES = sorted({command.split()[2] for command in COMMANDS if command.startswith("python -m")})


def test_readme_shows_commands_of_every_kind() -> None:
    assert len(TRAINING) >= 8
    assert len(MODULES) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINING)
def test_training_commands_compose_and_pass_the_checks(command: str, tmp_path: Path) -> None:
    words = [word.replace("PATH", str(tmp_path)) for word in shlex.split(command)[2:]]
    if "-m" in words or "--cfg" in words or "--help" in words:
        shown = subprocess.run(
            [sys.executable, "train.py", *words, *(["--cfg", "job"] if "-m" in words else [])],
            cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        assert "???" not in shown.stdout
        return
    has_path = any(word.startswith("data.path=") or word == "data=scenes" for word in words)
    if not has_path and any(word.startswith("data=") for word in words):
        words.append(f"data.path={tmp_path}")
    compose.load("train", words)


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_modules_explain_themselves(module: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout


@pytest.mark.slow
def test_the_commands_of_a_short_run_run_as_printed(tmp_path: Path) -> None:
    trained, evaluated = "python train.py debug=fast_dev_run", "python evaluate.py run=runs/latest"
    drawn = "python -m experiments.figures.run_figures runs/latest"
    assert {trained, evaluated, drawn} <= set(COMMANDS)
    for command, more in ((trained, [f"runs={tmp_path}/runs"]), (evaluated, []), (drawn, [])):
        words = command.replace("runs/latest", f"{tmp_path}/runs/latest").split()[1:]
        done = subprocess.run([sys.executable, *words, *more], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/latest/figures/predictions.png").stat().st_size > 10_000


def test_make_targets_that_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make ([a-z-]+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
