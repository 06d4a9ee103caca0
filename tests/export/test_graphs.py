"""Graphs of ONNX, OpenVINO and ExecuTorch give our features for any batch and length, with and without padding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor

from clip_lightning.errors import UserError
from clip_lightning.export import to_executorch, to_onnx, to_openvino
from clip_lightning.training.any_model import OpenedModel
from tests.export.models import CONTEXT, KINDS, WORDS, opened

Run = Callable[[dict[str, Tensor]], Any]


def onnx_runner(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]


def openvino_runner(path: Path) -> Run:
    model = openvino.Core().compile_model(path.with_suffix(".xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: model({name: tensor.numpy() for name, tensor in inputs.items()})[0]


def executorch_runner(path: Path) -> Run:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path.with_suffix(".pte")).load_method("forward")
    return lambda inputs: method.execute([*inputs.values()])[0]


LIBRARIES: dict[str, tuple[Callable[[OpenedModel, Path], None], Callable[[Path], Run]]] = {
    "onnx": (to_onnx.export, onnx_runner),
    "openvino": (to_openvino.export, openvino_runner),
    "executorch": (to_executorch.export, executorch_runner),
}


@pytest.mark.ci
@pytest.mark.parametrize(
    ("library", "kind"),
    [
        ("onnx", "ViT, GELU"),
        ("onnx", "timm + RoBERTa"),
        ("onnx", "ResNet-50"),
        ("openvino", "ViT, GELU"),
        ("executorch", "ViT, GELU"),
    ],
)
def test_features_are_ours_for_batches_and_lengths(library: str, kind: str, tmp_path: Path) -> None:
    if library == "executorch":
        pytest.importorskip("executorch")
    ours = opened(KINDS[kind][0](tmp_path))
    export, runner = LIBRARIES[library]
    export(ours, tmp_path)
    image, text = runner(tmp_path / "image"), runner(tmp_path / "text")
    torch.manual_seed(4)
    largest = {"image": 0.0, "text": 0.0}
    size = ours.config.vision.image_size
    for batch in (1, 7):
        pixels = torch.randn(batch, 3, size, size)
        features = torch.as_tensor(image({"pixel_values": pixels}))
        with torch.no_grad():
            difference = ours.model.encode_image(pixels) - features
        largest["image"] = max(largest["image"], float(difference.abs().max()))
        for length in (5, CONTEXT):
            for padded in (False, True):
                ids = torch.randint(3, WORDS, (batch, length))
                lengths = torch.full((batch,), length) - (torch.arange(batch) % 3 if padded else 0)
                mask = (torch.arange(length) < lengths[:, None]).long()
                features = torch.as_tensor(text({"input_ids": ids, "attention_mask": mask}))
                with torch.no_grad():
                    difference = ours.model.encode_text(ids, lengths) - features
                largest["text"] = max(largest["text"], float(difference.abs().max()))
    print(f"| {library} | {kind} | {largest['image']:.1e} | {largest['text']:.1e} |")
    assert max(largest.values()) < 1e-5
    if library == "onnx":
        about = {entry.key: entry.value for entry in onnx.load(tmp_path / "text.onnx").metadata_props}
        assert about["attention_mask"].startswith("1 for tokens, 0 for padding")
        assert ("in attention" in about["attention_mask"]) == ours.config.text.mask_padding
        assert about["context_length"] == str(CONTEXT)


@pytest.mark.ci
def test_an_operation_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    # The table of positions of its attention pooling is resized in each forward pass.
    with pytest.raises(UserError, match=r"upsample_bicubic2d_aa.*--to onnx may hold it"):
        to_openvino.export(opened(KINDS["ResNet-50"][0](tmp_path)), tmp_path)
