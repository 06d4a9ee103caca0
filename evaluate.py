"""Evaluates a run: `python evaluate.py run=runs/latest`; `python evaluate.py --help` shows what can be set."""

import sys

from clip_lightning.__main__ import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
