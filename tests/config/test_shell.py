"""Completion of settings in a shell, and the help page in groups."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clip_lightning.config import command_line, keys
from clip_lightning.config.command_line import help_page
from clip_lightning.config.compose import CONF
from clip_lightning.config.overrides import Grammar
from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError

PYTHON = Path(sys.executable)


def in_bash(script: str, root: Path) -> str:
    variables = {**os.environ, "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "--norc", "-c", script]
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def completed(program: str, line: str, root: Path) -> list[str]:
    """What bash offers for a line when Tab is pressed at its end, with the script that a program prints installed."""
    words = line.split(" ")
    return in_bash(
        f'eval "$({program} -sc install=bash)"\n'
        f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}\n"
        f"COMP_WORDS=({' '.join(map(shlex.quote, words))})\n"
        f"$(complete -p {words[0]} | grep -o 'hydra_bash_completion')\n"
        'printf "%s\\n" "${COMPREPLY[@]}"',
        root,
    ).split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("python train.py model=vit_b", {"model=vit_b16", "model=vit_b32", "model=vit_bigg14"}),
        ("python train.py model=vit_b32 compute.learning_r", {"compute.learning_rate="}),
    ],
)
def test_bash_completes_options_and_keys(line: str, expected: set[str], root: Path) -> None:
    assert set(completed("python train.py", line, root)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("clip-lightning tr", {"train"}),
        ("clip-lightning train model/vision=dino", {"model/vision=dinov2_base"}),
        ("clip-lightning evaluate eval.tas", {"eval.tasks."}),
    ],
)
def test_the_installed_command_completes_as_well(line: str, expected: set[str], root: Path, tmp_path: Path) -> None:
    program = tmp_path / "clip-lightning"
    program.write_text(f"#!{PYTHON}\nfrom clip_lightning.__main__ import main\nmain()\n")
    program.chmod(0o755)
    variables = f"export PATH={tmp_path}:$PATH PYTHONPATH={root}"
    words = line.split(" ")
    script = (
        f'{variables}\neval "$(clip-lightning -sc install=bash)"\nCOMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} '
        f'COMP_CWORD={len(words) - 1}\nhydra_bash_completion\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    assert set(in_bash(script, root).split()) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_of_a_shell_is_printed(shell: str, root: Path) -> None:
    script = in_bash(f"python train.py -sc install={shell}", root)
    assert "complete -o nospace -o default -F hydra_bash_completion python" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)  # it is a script


@pytest.mark.parametrize("words", [[], ["install=ksh"], ["bash"], ["install=bash", "model=tiny"]])
def test_another_request_is_refused_with_what_to_write(words: list[str]) -> None:
    with pytest.raises(UserError, match="takes install=SHELL or uninstall=SHELL; SHELL is bash, zsh, fish"):
        command_line.split(["-sc", *words])


def test_every_group_has_a_line_about_it() -> None:
    groups = Grammar(Config, [CONF]).groups
    assert set(groups) == set(command_line._DECIDES)
    lines = help_page("train", groups).splitlines()
    for group, meaning in command_line._DECIDES.items():
        assert f"  {group:<12}  {meaning}" in lines
    for name, key in keys.table(Config).items():
        if "." not in name and name not in groups:
            assert any(line.split()[:1] == [name] and key.help.split()[0] in line for line in lines), name


def test_the_help_page_fits_a_terminal() -> None:
    page = help_page("train", Grammar(Config, [CONF]).groups)
    assert max(map(len, page.splitlines())) <= 120
