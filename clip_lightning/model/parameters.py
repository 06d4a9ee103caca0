"""Parameters of the named models beside the published numbers: `python -m clip_lightning.model.parameters [MODEL ...]`.

Towers are counted with their projections. Models are built on the `meta` device, which takes no memory.
"""

import argparse
from typing import NamedTuple

import torch
from torch import nn

from clip_lightning.config.schema import LossConfig, ModelConfig
from clip_lightning.model.clip import build_clip
from clip_lightning.model.named import load, names

# Millions. Source: open_clip, docs/model_profile.csv, column mparams (RN50x4 and so on by the same names there).
PUBLISHED = {
 Source: open_clip  "rn50": 102.01,
 Source: open_clip  "rn101": 119.69,
 Source: open_clip  "rn50x4": 178.30,
 Source: open_clip  "rn50x16": 290.98,
 Source: open_clip  "rn50x64": 623.26,
 Source: open_clip  "vit_b32": 151.28,
 Source: open_clip  "vit_b16": 149.62,
 Source: open_clip  "vit_l14": 427.62,
 Source: open_clip  "vit_l14_336": 427.94,
 Source: open_clip  "vit_s32": 63.09,
 Source: open_clip  "vit_m32": 103.12,
 Source: open_clip  "vit_s16": 62.26,
 Source: open_clip  "vit_m16": 102.02,
 Source: open_clip  "vit_h14": 986.11,
 Source: open_clip  "vit_g14": 1366.68,
 Source: open_clip  "vit_bigg14": 2539.57,
 Source: open_clip  "siglip_b16": 203.16,
 Source: open_clip  "siglip_so400m": 877.36,
}


class Parameters(NamedTuple):
 Source: open_clip  """Numbers of parameters: of all, of the image tower, of the text tower."""

 Source: open_clip  total: int
 Source: open_clip  image: int
 Source: open_clip  text: int


def count_parameters(model: ModelConfig, loss: LossConfig) -> Parameters:
 Source: open_clip  """Counts a model that is built on the `meta` device.

 Source: open_clip  Raises:
 Source: open_clip      UserError: a tower cannot be built.
 Source: open_clip  """
 Source: open_clip  with torch.device("meta"):
 Source: open_clip      clip = build_clip(model, loss)
 Source: open_clip  return Parameters(_count(clip), _count(clip.vision), _count(clip.text))


def _count(module: nn.Module) -> int:
 Source: open_clip  return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
 Source: open_clip  """Prints a line for each model: ours, published, difference."""
 Source: open_clip  parser = argparse.ArgumentParser(description="Parameters of named models beside the published numbers.")
 Source: open_clip  parser.add_argument("models", nargs="*", metavar="MODEL", help="names below conf/model (default: all)")
 Source: open_clip  print(f"{'model':16}{'image':>10}{'text':>10}{'total':>10}{'published':>11}{'difference':>12}  M parameters")
 Source: open_clip  for name in parser.parse_args().models or names():
 Source: open_clip      total, image, text = (number / 1e6 for number in count_parameters(*load(name)))
 Source: open_clip      published = PUBLISHED.get(name)
 Source: open_clip      beside = f"{published:11.2f}{round(total, 2) - published:12.2f}" if published is not None else f"{'-':>11}"
 Source: open_clip      print(f"{name:16}{image:10.2f}{text:10.2f}{total:10.2f}{beside}")


if __name__ == "__main__":
 Source: open_clip  main()
