"""The command `python -m clip_lightning.scaling VERB`: plan, collect, fit, check, recommend, compare, show."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from io import BytesIO

from clip_lightning.errors import run_command
from clip_lightning.scaling.law import write_complete
from clip_lightning.scaling.show import page_html, page_of

VERBS = {
    "plan": "plan_command",
    "collect": "collect",
    "fit": "fit_command",
    "check": "check",
    "recommend": "recommend",
    "compare": "compare",
    "show": "show",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code. Raises: UserError."""
    parser = argparse.ArgumentParser(prog="python -m clip_lightning.scaling", description="Scaling laws.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, module in VERBS.items():
        found = import_module(f"clip_lightning.scaling.{module}")
        one = verbs.add_parser(verb, help=found.HELP, description=found.HELP)
        found.add_arguments(one)
        one.set_defaults(run=getattr(found, "run", _show))
    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code


def _show(arguments: argparse.Namespace) -> int:
    """Draws the page of a study. Drawing is here, since the package itself reads and writes tables only."""
    page = page_of(arguments)
    from clip_lightning.plots.scaling import study

    drawn, stream = study(page.tables, page.answer, page.title), BytesIO()
    drawn.savefig(stream, format="png")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if arguments.out.suffix == ".html":
        write_complete(arguments.out, page_html(page, stream.getvalue()))
    else:
        arguments.out.write_bytes(stream.getvalue())
    print(page.text)
    print(f"written    {arguments.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
