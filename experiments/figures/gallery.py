"""All figures and tables of runs on one page, gallery.html, with their numbers and captions.

    python -m experiments.figures.gallery runs/latest
    python -m experiments.figures.gallery --paper --out docs/figures      what `make figures` runs

A figure that cannot be drawn from these runs is listed with the reason and the command that makes what it needs.
"""

import argparse
import html
from collections.abc import Sequence
from pathlib import Path

from clip_lightning.errors import UserError, run_command
from experiments.figures import (
    appendix_tables,
    fig04_prompts,
    fig05_probe,
    fig06_fewshot,
    fig07_efficiency,
    fig08_zero_shot_and_probe,
    fig09_scaling,
    fig10_models,
    fig11_probe_difference,
    fig13_robustness,
    fig14_adaptation,
    fig17_overlap,
    fig21_predictions,
)
from experiments.figures.command import Command, Drawn, write

COMMANDS: list[Command] = [
    module.COMMAND
    for module in (
        fig04_prompts,
        fig05_probe,
        fig06_fewshot,
        fig07_efficiency,
        fig08_zero_shot_and_probe,
        fig09_scaling,
        fig10_models,
        fig11_probe_difference,
        fig13_robustness,
        fig14_adaptation,
        fig17_overlap,
        fig21_predictions,
        appendix_tables,
    )
]
_SEARCHED = 20_000  # training samples, by Figure 17: all of them may take hours
_STYLE = "body{font:15px/1.4 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}img{max-width:100%}"
_STYLE += "pre{overflow-x:auto;font-size:12px;background:#f6f6f6;padding:.6em}figcaption{color:#555}"


def main(words: Sequence[str] | None = None) -> int:
    """Draws what can be drawn, writes the page, prints the paths; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.figures.gallery", description="All figures on one page."
    )
    parser.add_argument("runs", nargs="*", type=Path, help="directories of runs")
    parser.add_argument("--paper", action="store_true", help="draw the paper's printed numbers instead of runs")
    parser.add_argument("--reference", metavar="TASK", help="of Figure 13: the data set without the shift")
    parser.add_argument("--shifts", nargs="+", metavar="TASK", help="of Figure 13: the shifted data sets")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these data sets")
    parser.add_argument("--prompts", help="only measurements with this set of prompts, but for Figure 4")
    parser.add_argument("--testbed", type=Path, metavar="CSV", help="of Figure 13: results file of imagenet-testbed")
    parser.add_argument("--out", type=Path, default=Path("runs/figures"), help="folder (default: runs/figures)")
    arguments = parser.parse_args(words)
    if bool(arguments.runs) == arguments.paper:
        raise UserError("name directories of runs, or --paper for the paper's printed numbers.")
    sections = []
    for command in COMMANDS:
        try:
            drawn = command.draw(_arguments(command, arguments))
        except UserError as error:
            sections.append(_section(command, "", f"<p>{html.escape(str(error))}</p>"))
            print(f"{command.name}: not drawn: {error}", flush=True)
            continue
        write(command.name, drawn, arguments.out)
        print(arguments.out / command.name, flush=True)
        sections.append(_drawn_section(command, drawn))
    name = "the paper's printed numbers" if arguments.paper else ", ".join(run.resolve().name for run in arguments.runs)
    page = arguments.out / "gallery.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    head = f"<!doctype html><meta charset=utf-8><title>Figures</title><style>{_STYLE}</style>"
    title = f"<h1>Figures of {html.escape(name)}</h1>"
    page.write_text("\n".join([head, title, *sections, ""]), encoding="utf-8")
    print(page)
    return 0


def _arguments(command: Command, shared: argparse.Namespace) -> argparse.Namespace:
    """What this command's own parser makes of the gallery's arguments."""
    if shared.paper and not command.paper:
        raise UserError("the paper printed no numbers of this figure.")
    words = ["--paper"] if shared.paper else [str(run) for run in shared.runs]
    arguments = command.parser().parse_args(words)
    if command is fig17_overlap.COMMAND:
        arguments.samples = _SEARCHED
    for name in ("reference", "shifts", "testbed", "tasks", "prompts"):
        is_compared = name == "prompts" and command is fig04_prompts.COMMAND  # Figure 4 compares sets of prompts
        if getattr(shared, name) and hasattr(arguments, name) and not is_compared:
            setattr(arguments, name, getattr(shared, name))
    return arguments


def _drawn_section(command: Command, drawn: Drawn) -> str:
    picture = f'<img src="{command.name}.png" alt="{html.escape(command.title)}">' if drawn.figure is not None else ""
    caption = f"<figcaption>{html.escape(drawn.caption)}</figcaption>"
    numbers = f"<details><summary>numbers</summary><pre>{html.escape(chr(10).join(drawn.numbers))}</pre></details>"
    return _section(command, f"<figure>{picture}{caption}</figure>", numbers)


def _section(command: Command, *parts: str) -> str:
    return f"<h2>{html.escape(command.title)}</h2>{''.join(parts)}"


if __name__ == "__main__":
    run_command(main)
