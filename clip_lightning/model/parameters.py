"""Parameters of the named models beside the published numbers: `python -m clip_lightning.model.parameters [MODEL ...]`.

Towers are counted with their projections. Models are built on the `meta` device, which takes no memory.
"""

import argparse
from typing import NamedTuple

import torch
from torch import nn

from clip_lightning.config.schema import LossConfig, ModelConfig
from clip_lightning.errors import run_command
from clip_lightning.model.clip import build_clip
from clip_lightning.model.named import load, names

# Millions. Source: open_clip, docs/model_profile.csv, column mparams.
PUBLISHED = {
    "rn50": 102.01,
    "rn101": 119.69,
    "rn50x4": 178.30,
    "rn50x16": 290.98,
    "rn50x64": 623.26,
    "vit_b32": 151.28,
    "vit_b16": 149.62,
    "vit_l14": 427.62,
    "vit_l14_336": 427.94,
    "vit_s32": 63.09,
    "vit_m32": 103.12,
    "vit_s16": 62.26,
    "vit_m16": 102.02,
    "vit_h14": 986.11,
    "vit_g14": 1366.68,
    "vit_bigg14": 2539.57,
    "siglip_b16": 203.16,
    "siglip_so400m": 877.36,
}


class Parameters(NamedTuple):
    """Numbers of parameters: of all, of the image tower, of the text tower."""

    total: int
    image: int
    text: int


def count_parameters(model: ModelConfig, loss: LossConfig) -> Parameters:
    """Counts a model that is built on the `meta` device.

    Raises:
        UserError: a tower cannot be built.
    """
    with torch.device("meta"):
        clip = build_clip(model, loss)
    return Parameters(_count(clip), _count(clip.vision), _count(clip.text))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    """Prints a line for each model: ours, published, difference."""
    parser = argparse.ArgumentParser(description="Parameters of named models beside the published numbers.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names below conf/model (default: all)")
    print(f"{'model':16}{'image':>10}{'text':>10}{'total':>10}{'published':>11}{'difference':>12}  M parameters")
    for name in parser.parse_args().models or names():
        total, image, text = (number / 1e6 for number in count_parameters(*load(name)))
        published = PUBLISHED.get(name)
        beside = f"{published:11.2f}{round(total, 2) - published:12.2f}" if published is not None else f"{'-':>11}"
        print(f"{name:16}{image:10.2f}{text:10.2f}{total:10.2f}{beside}")


if __name__ == "__main__":
    run_command(main)
