"""The key reference docs/config.md, made from the schema: `python -m clip_lightning.config.reference` writes it."""

import argparse
import re
from dataclasses import MISSING as NO_DEFAULT
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from clip_lightning.config import keys
from clip_lightning.config.schema import Config, EvaluateConfig
from clip_lightning.errors import run_command

PAGE = Path(__file__).parents[2] / "docs" / "config.md"
_HEAD = """# Every key of a run

Generated from `clip_lightning/config/schema/` by `python -m clip_lightning.config.reference`; edit the schema.

Set a key with `python train.py key=value`, choose an option of a group with `group=option`; `conf/README.md` says how
options are written. A **science** key decides what is learned and enters the hash in the name of the run's directory.
A default of *required* is set by every option of the group; *null* is off, or filled as the meaning says.
"""


def page() -> str:
    """The whole reference as Markdown."""
    parts = [_HEAD]
    for title, schema, skip in (("train.py", Config, ()), ("evaluate.py", EvaluateConfig, ("eval", "cluster"))):
        grouped: dict[str, list[keys.Key]] = {}
        for key in keys.table(schema).values():
            grouped.setdefault(key.name.split(".")[0] if "." in key.name else "", []).append(key)
        for group in sorted(grouped, key=lambda name: name != ""):
            if group in skip:
                continue
            heading = f"`conf/{group}/`" if group else f"Of `{title}` itself"
            parts.append(
                f"\n## {heading}\n\n| key | type | default | values | science | meaning |\n|---|---|---|---|---|---|\n"
            )
            parts += [_row(row) for key in grouped[group] for row in (key, *keys.items(key))]
    return "".join(parts)


def main() -> None:
    """Writes docs/config.md."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def _row(key: keys.Key) -> str:
    values = (", ".join(key.rule.choices) or key.rule.text) if key.rule else ""
    science = "yes" if key.science else ""
    meaning = re.sub(r"(?<!\w)_(\w+)_(?!\w)", r"\\_\1\\_", key.help)  # Markdown would read _target_ as emphasis
    cells = (f"`{key.name}`", _kind(key.kind), _default(key.default), values, science, meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _kind(kind: Any) -> str:
    if isinstance(kind, type) and not hasattr(kind, "__args__"):
        return kind.__name__
    return re.sub(r"\b(?:typing|[\w.]+\.schema\.\w+)\.", "", str(kind))


def _default(value: Any) -> str:
    if value is NO_DEFAULT or value == MISSING:
        return "*required*"
    if value is None:
        return "*null*"
    if isinstance(value, float):
        return f"`{value:.6g}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else ""


if __name__ == "__main__":
    run_command(main)
