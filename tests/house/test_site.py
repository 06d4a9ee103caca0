"""The documentation as a site: built without warnings, every link inside it leads somewhere; open_clip's flags."""

import argparse
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from clip_lightning.config import keys
from clip_lightning.config.compose import CONF
from clip_lightning.config.overrides import Grammar
from clip_lightning.config.schema import Config

ROOT = Path(__file__).parents[2]


def test_every_page_is_in_the_navigation_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    entries = re.findall(r":\s+(\S+\.md)$", text[text.index("\nnav:") :], re.M)
    assert len(entries) == len(set(entries))
    pages = {"index.md", *(path.name for path in (ROOT / "docs").glob("*.md"))}
    assert {entry for entry in entries if not entry.startswith("source/")} == pages
    sources = [entry.removeprefix("source/") for entry in entries if entry.startswith("source/")]
    assert all((ROOT / source).is_file() for source in sources)
    assert yaml.safe_load(text)["theme"]["font"] is False  # nothing is fetched from a server


def test_the_page_on_open_clip_has_all_of_its_flags_and_only_keys_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    parsers = []
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda self, *_: parsers.append(self) or argparse.Namespace(opt="timm")
    )
    params = pytest.importorskip("open_clip_train.params")
    params.parse_args([])
    flags = {action.option_strings[-1] for action in parsers[0]._actions} - {"--help"}
    assert len(flags) >= 90
    page = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(--[\w-]+)` \| (?:`([\w.]+)`|none) \|", page, re.M)
    assert sorted(flag for flag, _ in rows) == sorted(flags)
    names = {*keys.table(Config), *Grammar(Config, [CONF]).groups}
    assert not {key for _, key in rows if key} - names
    sections = {name.split(".")[0] for name in keys.table(Config)}
    written = {key for key in re.findall(r"`(?:\S* )?([a-z]+\.[\w.]+)", page) if key.split(".")[0] in sections}
    assert len(written) > 40
    assert not [key for key in written - names if not keys.owner(Config, key)]


class Links(HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found["id"]} if "id" in found else set()
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if (tag in ("img", "script") and "src" in found) or (tag == "link" and "stylesheet" in found.get("rel", "")):
            self.loaded.append(found.get("src") or found["href"])


@pytest.mark.ci
def test_the_site_is_built_without_warnings_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    variables = {"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    pages = {path.relative_to(tmp_path).as_posix(): Links(path) for path in tmp_path.rglob("*.html")}
    assert len(pages) > 15
    wrong = []
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded:
                    wrong.append(f"{name} loads {link} from a server")
                continue
            folder = posixpath.dirname(name)
            target = posixpath.normpath(posixpath.join(folder, unquote(parts.path))) if parts.path else name
            target = target if (tmp_path / target).is_file() else f"{target}/index.html"
            anchor = unquote(parts.fragment)
            is_there = (tmp_path / target).is_file() and (
                not anchor or anchor.startswith("__") or target not in pages or anchor in pages[target].ids
            )
            if not is_there and name != "404.html":  # whose links begin at the root of a server
                wrong.append(f"{name}: {link}")
    assert not wrong, "\n".join(sorted(set(wrong))[:40])
