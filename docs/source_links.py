"""A hook of MkDocs: links from docs/ to other files of the repository lead to pages of the site.

README.md is the site's first page. Another file that a page links to becomes the page source/PATH: Markdown as it is,
anything else as a block of code. Links in these pages are followed in turn. A link to a folder becomes its name.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ALWAYS = ("conf/README.md", "slurm/README.md", "CHANGELOG.md")  # in the navigation
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".sbatch": "bash", ".sh": "bash", ".toml": "toml", ".json": "json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds README.md and every file that the pages link to, directly or by way of another one."""
    found = {path: text for path in ["README.md", *ALWAYS] if (text := _text(path)) is not None}
    waiting = [*found, *(f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md"))]
    while waiting:
        path = waiting.pop()
        for target in _targets(path, _text(path) or ""):
            if target not in found and not target.startswith("docs/") and (ROOT / target).is_file():
                found[target] = _text(target)
                waiting.append(target)
    for path, text in found.items():
        if text is None:
            files.append(File.generated(config, _site(path), abs_src_path=str(ROOT / path)))
        else:
            files.append(File.generated(config, _site(path), content=_as_page(path, text)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links rewritten."""
    here = _repository(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        image, text, link, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
        if (ROOT / target).is_dir():
            return str(text)
        there = posixpath.relpath(_site(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{image}[{text}]({there}{anchor})"

    return markdown if here.endswith(tuple(_LANGUAGES)) else _LINK.sub(rewritten, markdown)


def _site(path: str) -> str:
    """The place in the site of a file of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    is_page = path.endswith(".md") or _text(path) is None
    return f"source/{path}" if is_page else f"source/{path}.md"


def _repository(place: str) -> str:
    """The file of the repository behind a place in the site."""
    if place == "index.md":
        return "README.md"
    if not place.startswith("source/"):
        return f"docs/{place}"
    path = place.removeprefix("source/")
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


def _text(path: str) -> str | None:
    """The text of a file; None of one that is not text."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None


def _targets(path: str, text: str) -> list[str]:
    if not path.endswith(".md"):
        return []
    folder = posixpath.dirname(path)
    return [posixpath.normpath(posixpath.join(folder, match.group(3))) for match in _LINK.finditer(text)]


def _as_page(path: str, text: str) -> Any:
    if path.endswith(".md"):
        return text
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {Path(path).name}\n\n`{path}`\n\n~~~~{language}\n{text}\n~~~~\n"
