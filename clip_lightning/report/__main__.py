"""The command `python -m clip_lightning.report RUN [RUN ...]`: the page of one run, or of several compared."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clip_lightning.errors import UserError, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clip_lightning.report", description="Write a page of a run, or of several compared."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directories of runs")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: report.html in the run, or comparison.html in this folder"
    )
    arguments = parser.parse_args(argv)
    from clip_lightning.report.page import FILE, write  # imports pandas

    out = arguments.out or (arguments.runs[0] / FILE if len(arguments.runs) == 1 else Path("comparison.html"))
    try:
        write(arguments.runs, out)
    except OSError as error:
        raise UserError(f"--out {out}: it cannot be written ({error.strerror})") from error
    print(out)
    return 0


if __name__ == "__main__":
    run_command(main)
