"""ONNX graphs in onnxruntime give our features for any batch, any length of text, with and without padding."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from clip_lightning.export import to_onnx
from tests.export.models import CONTEXT, KINDS, WORDS, opened


@pytest.mark.ci
@pytest.mark.parametrize("name", ["ViT, GELU", "timm + RoBERTa", "ResNet-50"])
def test_features_are_ours_for_batches_and_lengths(name: str, tmp_path: Path) -> None:
    ours = opened(KINDS[name][0](tmp_path))
    to_onnx.export(ours, tmp_path)
    options = {"providers": ["CPUExecutionProvider"]}
    image = onnxruntime.InferenceSession(tmp_path / "image.onnx", **options)
    text = onnxruntime.InferenceSession(tmp_path / "text.onnx", **options)
    torch.manual_seed(4)
    largest = {"image": 0.0, "text": 0.0}
    size = ours.config.vision.image_size
    for batch in (1, 7):
        pixels = torch.randn(batch, 3, size, size)
        (features,) = image.run(None, {"pixel_values": pixels.numpy()})
        with torch.no_grad():
            difference = ours.model.encode_image(pixels) - torch.from_numpy(features)
        largest["image"] = max(largest["image"], float(difference.abs().max()))
        for length in (5, CONTEXT):
            for padded in (False, True):
                ids = torch.randint(3, WORDS, (batch, length))
                lengths = torch.full((batch,), length) - (torch.arange(batch) % 3 if padded else 0)
                mask = (torch.arange(length) < lengths[:, None]).long()
                fed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
                (features,) = text.run(None, fed)
                with torch.no_grad():
                    difference = ours.model.encode_text(ids, lengths) - torch.from_numpy(features)
                largest["text"] = max(largest["text"], float(difference.abs().max()))
    print(f"| {name} | {largest['image']:.1e} | {largest['text']:.1e} |")
    assert max(largest.values()) < 1e-5
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "text.onnx").metadata_props}
    assert about["attention_mask"].startswith("1 for tokens, 0 for padding")
    assert ("in attention" in about["attention_mask"]) == ours.config.text.mask_padding
    assert about["context_length"] == str(CONTEXT)
