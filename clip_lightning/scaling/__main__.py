"""The command `python -m clip_lightning.scaling VERB`: plan, collect, fit, check, recommend, compare, show."""

import argparse
from collections.abc import Sequence
from importlib import import_module

from clip_lightning.errors import run_command

VERBS = {
    "plan": "plan_command",
    "collect": "collect",
    "fit": "fit_command",
    "check": "check",
    "recommend": "recommend",
    "compare": "compare",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code. Raises: UserError."""
    parser = argparse.ArgumentParser(prog="python -m clip_lightning.scaling", description="Scaling laws.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, module in VERBS.items():
        found = import_module(f"clip_lightning.scaling.{module}")
        one = verbs.add_parser(verb, help=found.HELP, description=found.HELP)
        found.add_arguments(one)
        one.set_defaults(run=found.run)
    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code


if __name__ == "__main__":
    run_command(main)
