"""Plain English: words that docs, messages, comments and docstrings avoid, each with what to write instead."""

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTEAD = {
    r"\btells?\b(?! \w+ \w* ?apart)|\btold\b": "report, say which",
    r"\bit stands\b|\bstands (for|in|on|at|beside|lower)\b|\bas it stands\b": "is, exists, is in",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bpass(es|ed|ing) over\b": "skip",
    r"\bwithout a word\b|\bno word\b|\bthe word of\b|'s word\b": "silently, message",
    r"\bleaves? with\b|\bleaves? by itself\b|\bhas left\b": "exit",
    r"\bgo(es)? on\b|\bgoing on\b|\bwent on\b": "continue, resume",
    r"\bhears?\b|\bheard\b": "receive",
    r"\b(given|made|written|set) anew\b|\banew\b": "again",
    r"\b(is|are) asked for\b|\basks? for\b": "request",
    r"\bcomes? to (the|a|one|what|this)\b|\bcome to\b": "resolve to, reach",
    r"\bma(kes?|de) up for\b": "runs the missed ...",
    r"\bcomes? of age\b": "is complete",
    r"\bis no (training|run|tower|YAML|data|table|option|place)\b": "is not a ...",
    r"\bat (its|their) word\b|\ba wish\b": "trust, a task",
    r"\brooms\b|\bthe house\b|\barrows\b": "package, module, import",
    r"\bthe machine\b|\bthis machine\b|\bmachine settings\b": "the hardware, this computer, this node",
    r"\bits own words\b|\bown words\b": "message",
    r"\b(nobody|anybody)\b(?!/)": "no process, nothing",
    r"\bis lost for ever\b|\bfor ever\b": "forever",
    r"\bdrawer\b|\bunder one roof\b|\bkeeps company\b": "say it plainly",
}
PROSE = (".md", ".yaml", ".sbatch", ".sh", "Makefile")
TEXT = (tokenize.COMMENT, tokenize.STRING, tokenize.NAME, getattr(tokenize, "FSTRING_MIDDLE", -1))
EXEMPT = {"tests/house/test_vocabulary.py"}


def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file() and name not in EXEMPT]


def prose_of(name: str) -> Iterator[tuple[int, str]]:
    """Lines of a page; comments, string literals and names of a Python file, with their line numbers."""
    if not name.endswith((".py", *PROSE)):
        return
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".py"):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            lines = token.string.split("\n")
            if token.type == tokenize.NAME:
                lines = [token.string.replace("_", " ")]
            if token.type in TEXT:
                yield from ((token.start[0] + i, line) for i, line in enumerate(lines))
    elif "golden" not in name:
        yield from enumerate(text.split("\n"), 1)


@pytest.mark.slow
def test_docs_messages_and_comments_are_plain_english() -> None:
    words = {re.compile(pattern, re.IGNORECASE): instead for pattern, instead in INSTEAD.items()}
    wrong = [
        f"{name}:{number}: {match[0]!r}: write {instead!r}"
        for name in tracked()
        for number, line in prose_of(name)
        for pattern, instead in words.items()
        if (match := pattern.search(line))
    ]
    assert not wrong, f"{len(wrong)} lines:\n" + "\n".join(wrong)
