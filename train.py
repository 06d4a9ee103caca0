"""Trains a CLIP model: `python train.py key=value ...`; `python train.py --help` shows what can be set."""

import sys

from clip_lightning.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
