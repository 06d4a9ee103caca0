"""Look at data before a run: `python -m clip_lightning.data.check PATH`, or `--data cc12m --set data.path=DIR`.

Prints what is there and what is damaged, how large images and captions are, what occurs twice, and how many samples a
second this node feeds beside what a GPU needs; writes a page of images with their captions.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from clip_lightning.errors import UserError, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m clip_lightning.data.check", description="Look at data.")
    parser.add_argument("path", nargs="?", metavar="PATH", help="folder, file or pattern; its kind is detected")
    parser.add_argument("--data", help="an option of the group data, instead of the detected one")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings, as of train.py")
    parser.add_argument("--samples", type=int, default=5000, help="how many to decode (default 5,000)")
    parser.add_argument("--page", type=Path, help="where the page of images goes (default: a new temporary folder)")
    parser.add_argument("--gpu-tflops", type=float, default=400.0, help="that a GPU sustains (400: an H100 at 40 %%)")
    arguments = parser.parse_args(argv)
    # Slow to import, and not needed for --help.
    from clip_lightning.config import compose
    from clip_lightning.config.detect import data_option

    try:
        option = arguments.data or (data_option(arguments.path) if arguments.path else "scenes")
        config = compose.load("train", [f"data={option}", *arguments.set], check=False)
        if arguments.path:
            config.data.path = arguments.path
        config.data.max_bad_share = 1.0  # bad samples are what this command reports
        from clip_lightning.data import findings

        if arguments.path and not arguments.data:
            _print([f"kind        {arguments.path} is read with data={option}"])
        module, tokenizer = findings.build(config)
        _print(findings.describe(module, findings.look(module, tokenizer, arguments.samples)))
        page = arguments.page or Path(tempfile.mkdtemp(prefix="clip_lightning_")) / "page.png"
        findings.draw_page(module, page)
        cores = len(os.sched_getaffinity(0))
        core, node = findings.rates(module, cores)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    _print([f"speed       {core:,.0f} samples/s a core, {node:,.0f} samples/s with the {cores} cores of this node"])
    if flops := findings.training_flops(config.model.name, compose.CONF.parent):
        wanted = arguments.gpu_tflops * 1e12 / flops
        gpu = f"one at {arguments.gpu_tflops:g} TFLOP/s trains {config.model.name} on {wanted:,.0f} samples/s or more"
        _print([f"GPU         {gpu}: {wanted / core:,.1f} such cores feed it"])
    _print([f"page        {page}"])
    return 0


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    run_command(main)
