"""Floating-point operations of a forward pass, counted by torch on the `meta` device, where nothing is computed.

A multiplication with its addition counts as 2; matrix products, convolutions and attention count, nothing else does:
the convention of fvcore and of published tables. `python -m clip_lightning.model.flops [MODEL ...]` prints a table.
"""

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clip_lightning.config.compose import read
from clip_lightning.config.phases import Phase, phase_sizes
from clip_lightning.config.schema import LossConfig, ModelConfig
from clip_lightning.errors import UserError, run_command
from clip_lightning.model.clip import build_clip
from clip_lightning.model.named import load, names
from clip_lightning.model.parameters import count_parameters
from clip_lightning.model.text import TextTower
from clip_lightning.model.vision import first_line

# Batch norm refuses a batch of one where a feature map is one pixel.
_BATCH = 2


class Flops(NamedTuple):
    """Operations of one image and of one text of the full context; training takes three times as many."""

    image: float
    text: float


class TextFlops(NamedTuple):
    """Operations of a text of L tokens: constant + linear * L + quadratic * L^2."""

    constant: float
    linear: float
    quadratic: float

    def total(self, num: float, tokens: float, squares: float) -> float:
        """Operations of `num` texts with so many tokens, and squares of their tokens, together."""
        return self.constant * num + self.linear * tokens + self.quadratic * squares


def count_flops(model: ModelConfig, loss: LossConfig, phase: Phase | None = None) -> Flops:
    """Operations of a forward pass in training, per sample.

    Args:
        phase: of a run; without one the model's own size and length.

    Raises:
        UserError: a tower cannot be built, or does not take the images of the phase.
    """
    with torch.device("meta"):
        clip = build_clip(model, loss, () if phase is None else (phase,)).requires_grad_(False)
        # The encoder reads the values of a mask, and meta tensors have none; products are the same without it.
        clip.text.mask_padding = False  # type: ignore[assignment]
        pixels = phase.image_size if phase else model.vision.image_size
        context = phase.context_length if phase else model.text.context_length
        images = torch.zeros(_BATCH, 3, pixels, pixels)
        try:
            return Flops(_count(clip.vision, images), _count(clip.text, *_texts(context)))
        except (RuntimeError, AssertionError, ValueError) as error:
            if pixels == model.vision.image_size:
                raise
            tower = model.vision.timm or model.vision._target_
            raise UserError(
                f"compute.phases: image_size={pixels} does not fit {tower}, which is built for "
                f"model.vision.image_size={model.vision.image_size} ({first_line(error)}); leave image_size out"
            ) from error


def count_text(model: ModelConfig) -> TextFlops | None:
    """Operations of a forward pass of a text by its own length, exact for any transformer.

    Returns:
        None where a text is to be counted as one of the full context: where it is padded to it, and where the tower,
        such as a user's own, cannot be counted at other lengths or is no polynomial of them.

    Raises:
        UserError: the tower cannot be built.
    """
    context = model.text.context_length
    if model.text.pad_to_context:
        return None
    with torch.device("meta"):
        tower = TextTower(model.text, model.embed_dim).requires_grad_(False)
        tower.mask_padding = False
        try:
            one, two, three, full = (_count(tower, *_texts(length)) for length in (1, 2, 3, context))
        except Exception:  # whatever a user's own tower raises
            return None
    quadratic = (three - 2 * two + one) / 2
    linear = two - one - 3 * quadratic
    found = TextFlops(one - linear - quadratic, linear, quadratic)
    return found if math.isclose(found.total(1, context, context**2), full) else None


def _texts(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and lengths."""
    return torch.zeros(_BATCH, length, dtype=torch.long), torch.full((_BATCH,), length)


def _count(tower: nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        tower(*inputs)
    return counter.get_total_flops() / _BATCH


def main() -> None:
    """Prints the operations of named models, or of those of runs' configs."""
    parser = argparse.ArgumentParser(description="Forward GFLOPs of named models, an image and a text apart.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names below conf/model (default: all)")
    parser.add_argument(
        "--config",
        nargs="+",
        type=Path,
        default=[],
        help="config.yaml of runs instead of names; each phase is a row FILE@0, FILE@1, ...",
    )
    parser.add_argument(
        "--csv", action="store_true", help="exact numbers, with parameters and width, for other programs"
    )
    arguments = parser.parse_args()
    found: list[tuple[str, ModelConfig, LossConfig, Phase | None]] = []
    for path in arguments.config:
        config = read(path)
        found.append((str(path), config.model, config.loss, None))
        phases = phase_sizes(config)[1:]  # a run's phases after the model's own sizes
        found += [(f"{path}@{k}", config.model, config.loss, phase) for k, phase in enumerate(phases)]
    found = found or [(name, *load(name), None) for name in arguments.models or names()]
    if arguments.csv:
        print("model,image_flops,text_flops,parameters,embed_dim")
    else:
        print(f"{'model':16}{'image':>10}{'text':>10}{'pair':>10}  GFLOPs")
    for name, model, loss, phase in found:
        flops = count_flops(model, loss, phase)
        if arguments.csv:
            total = count_parameters(model, loss).total
            print(f"{name},{flops.image:.0f},{flops.text:.0f},{total},{model.embed_dim}", flush=True)
        else:
            print(f"{name:16}{flops.image / 1e9:10.2f}{flops.text / 1e9:10.2f}{sum(flops) / 1e9:10.2f}")


if __name__ == "__main__":
    run_command(main)
