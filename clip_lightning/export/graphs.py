"""The two graphs of a model, images and texts, traced once for ONNX, OpenVINO and ExecuTorch; outputs have length 1.

image: pixel_values float32 [batch, 3, S, S], normalised, to image_embeds [batch, D]. text: input_ids and attention_mask
int64 [batch, length] to text_embeds [batch, D]. The mask is 1 for tokens and 0 for padding behind them; every model
reads it, since texts are pooled at their last token or over their tokens.
"""

import json
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from clip_lightning.errors import UserError
from clip_lightning.export.tokenizers import special_ids
from clip_lightning.model.clip import CLIP
from clip_lightning.training.any_model import OpenedModel

IMAGE, TEXT = "image", "text"
INPUTS = {IMAGE: ["pixel_values"], TEXT: ["input_ids", "attention_mask"]}
OUTPUTS = {IMAGE: "image_embeds", TEXT: "text_embeds"}


class ImageGraph(nn.Module):
    """Normalised pixels to features of length 1."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Float32 [B, 3, S, S] to float32 [B, D]."""
        return self.model.encode_image(pixel_values)


class TextGraph(nn.Module):
    """Token ids with their mask to features of length 1."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Int64 [B, L] both, to float32 [B, D]."""
        return self.model.encode_text(input_ids, attention_mask.sum(1))


class Graph(NamedTuple):
    """One traced tower. Attributes: `name` image or text; `program` with a symbolic batch and text length."""

    name: str
    program: ExportedProgram


def trace(opened: OpenedModel, most_images: int | None = None) -> list[Graph]:
    """Both graphs, with a symbolic batch, and a symbolic length where texts are not padded to the context.

    Args: most_images: the largest batch, for libraries that reserve memory for it; None: any.

    Raises: UserError: torch cannot trace a tower.
    """
    vision, text = opened.config.vision, opened.config.text
    batch = Dim("batch", min=1, max=most_images)
    pixels = torch.zeros(2, 3, vision.image_size, vision.image_size)
    length = text.context_length if text.pad_to_context else min(9, text.context_length)
    ids = torch.ones(2, length, dtype=torch.long)
    shape: dict[int, Dim] = {0: batch}
    if not text.pad_to_context:
        shape[1] = Dim("length", min=2, max=text.context_length)
    return [
        Graph(IMAGE, _traced(IMAGE, ImageGraph(opened.model), (pixels,), ({0: batch},))),
        Graph(TEXT, _traced(TEXT, TextGraph(opened.model), (ids, ids.clone()), (shape, shape))),
    ]


def about(opened: OpenedModel) -> dict[str, str]:
    """What a user of the graphs needs to prepare their inputs, and the logit scale and bias."""
    vision, text = opened.config.vision, opened.config.text
    facts = {
        "image_size": str(vision.image_size),
        "mean": json.dumps(list(vision.mean)),
        "std": json.dumps(list(vision.std)),
        "resize": vision.resize,
        "interpolation": vision.interpolation,
        "context_length": str(text.context_length),
        "special_tokens": special_ids(opened),
        "attention_mask": "1 for tokens, 0 for padding behind them; read for the pooled position"
        + (" and in attention" if text.mask_padding else ""),
        "logit_scale": str(float(opened.model.current_logit_scale())),
    }
    if opened.model.logit_bias is not None:
        facts["logit_bias"] = str(float(opened.model.logit_bias))
    return facts


def _traced(
    name: str, graph: nn.Module, inputs: tuple[Tensor, ...], shapes: tuple[dict[int, Dim], ...]
) -> ExportedProgram:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(graph.eval(), inputs, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises exceptions of many kinds
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"torch cannot trace the {name} tower of this model ({reason})") from error
