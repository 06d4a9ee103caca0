"""Sizes and manners of the code: what the design promises a reader. An exception stands here, with its reason."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_LINEAR, LONGEST_ENTRY, LONGEST_ASSEMBLY = 400, 60, 80, 25, 150
LONGER_FUNCTIONS: dict[str, str] = {
    "clip_lightning/run/train.py:train": "the assembly of a run, read from top to bottom",
}
LONGER_FILES: dict[str, str] = {}


def tracked(*suffixes: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    paths = [ROOT / name for name in listed if name.endswith(suffixes)]
    return [path for path in paths if path.is_file()]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


@pytest.mark.slow
def test_files_and_functions_are_short_enough() -> None:
    wrong = []
    for path in tracked(".py"):
        name = str(path.relative_to(ROOT))
        if num_lines(path) > LONGEST_FILE and name not in LONGER_FILES:
            wrong.append(f"{name}: {num_lines(path)} lines")
        for node in functions(path):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            longest = LONGEST_LINEAR if f"{name}:{node.name}" in LONGER_FUNCTIONS else LONGEST_FUNCTION
            if size > longest:
                wrong.append(f"{name}:{node.lineno}: {node.name} is {size} lines long")
    assert not wrong, "\n".join(wrong)


def test_entry_files_and_assemblies_stay_short() -> None:
    limits = {"train.py": LONGEST_ENTRY, "evaluate.py": LONGEST_ENTRY}
    limits |= {f"clip_lightning/run/{name}": LONGEST_ASSEMBLY for name in ("train.py", "evaluate.py")}
    wrong = [
        f"{name}: {num_lines(ROOT / name)} lines" for name, limit in limits.items() if num_lines(ROOT / name) > limit
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_every_signature_is_typed() -> None:
    wrong = []
    for path in tracked(".py"):
        for node in functions(path):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if untyped or node.returns is None:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} {untyped or 'returns?'}")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_half_done() -> None:
    words = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|raise NotImplemented" r"Error|except\s*:\s*$", re.M)
    hosts = re.compile(r"pypi\.org|pythonhosted|index-url|extra-index|find-links")
    wrong = []
    for path in tracked(".py", ".md", ".yaml", ".toml", ".txt", "Makefile", ".sh", ".sbatch"):
        text = path.read_text(encoding="utf-8")
        for pattern in (words, hosts):
            if (match := pattern.search(text)) and path != Path(__file__):
                wrong.append(f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}")
    assert not wrong, "\n".join(wrong)


def test_no_file_for_leftovers() -> None:
    assert not [path for path in tracked(".py") if path.name in ("utils.py", "helpers.py", "misc.py", "common.py")]
