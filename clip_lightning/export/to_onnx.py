"""Two ONNX graphs, `image.onnx` and `text.onnx`, with a symbolic batch and text length; outputs have length 1.

`image.onnx`: pixel_values float32 [batch, 3, S, S], normalised, to image_embeds [batch, D]. `text.onnx`: input_ids and
attention_mask int64 [batch, length] to text_embeds [batch, D]. The mask is 1 for tokens and 0 for padding behind them;
every model reads it, since texts are pooled at their last token or over their tokens.
"""

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from clip_lightning.errors import UserError
from clip_lightning.export.tokenizers import special_ids
from clip_lightning.model.clip import CLIP
from clip_lightning.training.any_model import OpenedModel

IMAGE, TEXT = "image.onnx", "text.onnx"
_OPSET = 20


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


def export(opened: OpenedModel, folder: Path) -> None:
    """Writes both graphs.

    Raises: UserError: the packages onnx and onnxscript are missing, or torch cannot trace a tower.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx writes with it
    except ImportError as error:
        raise UserError("--to onnx needs onnx and onnxscript; pip install clip_lightning[export]") from error
    vision, text = opened.config.vision, opened.config.text
    batch = torch.export.Dim("batch", min=1)
    pixels = torch.zeros(2, 3, vision.image_size, vision.image_size)
    _write(ImageGraph(opened.model), (pixels,), ["pixel_values"], "image_embeds", [{0: batch}], folder / IMAGE)
    length = text.context_length if text.pad_to_context else min(9, text.context_length)
    ids = torch.ones(2, length, dtype=torch.long)
    symbolic = (
        {0: batch} if text.pad_to_context else {0: batch, 1: torch.export.Dim("length", min=2, max=text.context_length)}
    )
    names = ["input_ids", "attention_mask"]
    _write(TextGraph(opened.model), (ids, ids.clone()), names, "text_embeds", [symbolic, symbolic], folder / TEXT)
    about = {
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
        about["logit_bias"] = str(float(opened.model.logit_bias))
    for name in (IMAGE, TEXT):
        graph = onnx.load(folder / name)
        onnx.helper.set_model_props(graph, about)
        onnx.save(graph, folder / name)


def _write(
    graph: nn.Module, inputs: tuple[Tensor, ...], names: list[str], output: str, shapes: list[object], path: Path
) -> None:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph.eval(),
                inputs,
                path,
                input_names=names,
                output_names=[output],
                dynamic_shapes=tuple(shapes),
                opset_version=_OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch.export raises exceptions of many kinds
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"torch cannot write {path.name} of this model ({reason})") from error
