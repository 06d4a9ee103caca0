"""The commands that the pages of the project show, and the places that their links lead to."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "conf/README.md", ROOT / "slurm/README.md"})
# What a command may begin with, beside settings of the environment.
PROGRAMS = (
    "clip-lightning",
    "eval",
    "export",
    "make",
    "pip",
    "pytest",
    "python",
    "sbatch",
    "source",
    "srun",
    "torchrun",
    "uv",
)
_FENCE = re.compile(r"^( *)(```+|~~~+)(.*?)\n(.*?)^\1\2 *$", re.M | re.S)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\((?!\w+:)([^)#\s]*)(?:#([^)]*))?\)")


class Shown(NamedTuple):
    """A command as a page shows it, in one line."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its words as a shell splits them, without settings of the environment before the program."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            del words[0]
        return words


def shown(page: Path) -> Iterator[Shown]:
    """The commands of a page: in blocks of a console or bash, in indented blocks, and between backticks."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    blocks = [match[4] for match in _FENCE.finditer(text) if match[3].strip() in ("console", "bash")]
    rest = _FENCE.sub("", text)
    blocks += ["\n".join(re.findall(r"^(?: {4}| {8})(\S.*)$", rest, re.M))]
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+ [^`\n]+)`", rest)
    for line in lines:
        first = re.sub(r"^([A-Z_]+=\S* )+", "", line).partition(" ")[0]
        if first in PROGRAMS:
            yield Shown(name, line)


def block_lines(page: Path) -> list[str]:
    """The lines of a page's console blocks: each of them has to be a command that is known here."""
    text = page.read_text(encoding="utf-8")
    blocks = [match[4] for match in _FENCE.finditer(text) if match[3].strip() == "console"]
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def links(page: Path) -> list[tuple[str, str]]:
    """The relative links of a page: (path, or '' for the page itself; anchor, or '')."""
    return _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them and MkDocs does for plain headings."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.M)}


def write_config_files(folder: Path) -> None:
    """Writes the files that the pages show for a reader's own `--config-dir=DIR`."""
    for page in PAGES:
        for block in re.findall(r"(?:^ {4,8}\S.*\n|^ {5,}.*\n)+", page.read_text(encoding="utf-8"), re.M):
            if name := re.search(r"# DIR/(\S+\.yaml):", block):
                (folder / name[1]).parent.mkdir(parents=True, exist_ok=True)
                (folder / name[1]).write_text(textwrap.dedent(block), encoding="utf-8")
