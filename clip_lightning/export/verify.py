"""Opens exported files by the other library's public call and compares features, tokens and pixels with ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional

from clip_lightning.data.images.decode import Resize, decode_eval
from clip_lightning.errors import UserError
from clip_lightning.export.to_transformers import input_tensors
from clip_lightning.training.any_model import OpenedModel

TEXTS = ("a photo of a cat", "two dogs, 3 birds!", "a red circle left of a blue square")
LARGEST_FEATURE, LARGEST_LEVEL = 1e-4, 3.0


class Difference(NamedTuple):
    """The largest differences between ours and another library's; None of what the library does not have.

    Attributes:
        image, text: of features of length 1.
        tokens: how many of the texts have other ids, padding aside.
        pixels: in levels of 255.
    """

    image: float
    text: float | None
    tokens: int | None
    pixels: float | None

    def __str__(self) -> str:
        parts = [f"image features {self.image:.1e}"]
        parts += [f"text features {self.text:.1e}"] if self.text is not None else []
        parts += [f"tokens {len(TEXTS) - self.tokens} of {len(TEXTS)} texts equal"] if self.tokens is not None else []
        parts += [f"pixels {self.pixels:.2f} of 255 levels"] if self.pixels is not None else []
        return ", ".join(parts)


class Inputs(NamedTuple):
    """What both libraries read: photographs, normalised pixels [B, 3, S, S], tokens [T, L] and lengths [T]."""

    photographs: list[Any]
    pixels: Tensor
    tokens: Tensor
    lengths: Tensor


def inputs(opened: OpenedModel) -> Inputs:
    """Two photographs of scikit-learn and three texts, as ours prepares them."""
    vision = opened.config.vision
    photographs = [image[40:380].copy() for image in load_sample_images().images]
    resize = Resize(vision.resize, vision.interpolation)
    levels = torch.stack([decode_eval(image, vision.image_size, resize=resize) for image in photographs])
    tower: Any = opened.model.vision
    pixels = (levels.float() / 255 - tower.mean) / tower.std
    tokens, lengths, _ = opened.tokenizer(TEXTS)
    return Inputs(photographs, pixels, torch.from_numpy(tokens), torch.from_numpy(lengths))


@torch.no_grad()
def verify(opened: OpenedModel, library: str, folder: Path) -> Difference:
    """Compares exported files with the model they were made of.

    Raises: UserError: features, tokens or pixels differ by more than rounding.
    """
    found = _CHECKS[library](opened, folder, inputs(opened))
    too_far = [found.image > LARGEST_FEATURE, (found.text or 0) > LARGEST_FEATURE]
    if any(too_far) or (found.tokens or 0) or (found.pixels or 0) > LARGEST_LEVEL:
        raise UserError(f"{library} reads the exported files otherwise than this project: {found}; nothing was written")
    return found


def _features(opened: OpenedModel, given: Inputs) -> tuple[Tensor, Tensor]:
    return opened.model.encode_image(given.pixels), opened.model.encode_text(given.tokens, given.lengths)


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - functional.normalize(theirs, dim=-1)).abs().max())


def _levels(given: Inputs, theirs: Tensor, opened: OpenedModel) -> float:
    tower: Any = opened.model.vision
    return float(((given.pixels - theirs) * tower.std * 255).abs().max())


def _ids_differ(given: Inputs, theirs: Any) -> int:
    """How many texts have other ids in front of the padding."""
    rows = zip(given.tokens.tolist(), given.lengths.tolist(), theirs, strict=True)
    return sum(row[:length] != list(other)[:length] for row, length, other in rows)


def _transformers(opened: OpenedModel, folder: Path, given: Inputs) -> Difference:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    ids = tokenizer(list(TEXTS), padding="max_length", truncation=True, max_length=opened.config.text.context_length)
    image, text = _features(opened, given)
    theirs = input_tensors(opened, given.tokens, given.lengths)
    return Difference(
        _largest(image, model.get_image_features(given.pixels).pooler_output),
        _largest(text, model.get_text_features(**theirs).pooler_output),
        _ids_differ(given, ids["input_ids"]),
        _levels(given, processor(given.photographs, return_tensors="pt")["pixel_values"], opened),
    )


def _open_clip(opened: OpenedModel, folder: Path, given: Inputs) -> Difference:
    import open_clip
    from PIL import Image

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    image, text = _features(opened, given)
    ids = tokenizer(list(TEXTS))
    pixels = torch.stack([preprocess(Image.fromarray(photograph)) for photograph in given.photographs])
    return Difference(
        _largest(image, model.eval().encode_image(given.pixels)),
        _largest(text, model.encode_text(ids)),
        _ids_differ(given, ids.tolist()),
        _levels(given, pixels, opened),
    )


def _timm(opened: OpenedModel, folder: Path, given: Inputs) -> Difference:
    import timm
    from PIL import Image

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    pixels = torch.stack([transform(Image.fromarray(photograph)) for photograph in given.photographs])
    ours = functional.normalize(opened.model.vision.backbone(given.pixels), dim=-1)  # type: ignore[operator]
    return Difference(_largest(ours, model(given.pixels)), None, None, _levels(given, pixels, opened))


def _sentence_transformers(opened: OpenedModel, folder: Path, given: Inputs) -> Difference:
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    images = [Image.fromarray(photograph) for photograph in given.photographs]
    image, text = _features(opened, given)
    theirs = torch.from_numpy(model.encode(list(TEXTS)))
    # Images pass through transformers' processor, whose pixels differ by a level.
    own = torch.from_numpy(model.encode(images))
    cosine = 1 - (functional.normalize(own, dim=-1) * image).sum(-1).min()
    if cosine > 1e-2:
        raise UserError(f"sentence-transformers' image vectors differ from ours (cosine {1 - float(cosine):.4f})")
    return Difference(0.0, _largest(text, theirs), None, None)


def _onnx(opened: OpenedModel, folder: Path, given: Inputs) -> Difference:
    try:
        from onnxruntime import InferenceSession
    except ImportError as error:
        raise UserError("the check after --to onnx needs onnxruntime; pip install clip_lightning[export]") from error

    def run(name: str, tensors: dict[str, Tensor]) -> Any:
        session = InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        return session.run(None, {key: tensor.numpy() for key, tensor in tensors.items()})[0]

    return _graphs(opened, given, run)


def _openvino(opened: OpenedModel, folder: Path, given: Inputs) -> Difference:
    import openvino

    def run(name: str, tensors: dict[str, Tensor]) -> Any:
        model = openvino.Core().compile_model(folder / f"{name}.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return model({key: tensor.numpy() for key, tensor in tensors.items()})[0]

    return _graphs(opened, given, run)


def _executorch(opened: OpenedModel, folder: Path, given: Inputs) -> Difference:
    from executorch.runtime import Runtime

    def run(name: str, tensors: dict[str, Tensor]) -> Any:
        return Runtime.get().load_program(folder / f"{name}.pte").load_method("forward").execute([*tensors.values()])[0]

    return _graphs(opened, given, run)


def _graphs(opened: OpenedModel, given: Inputs, run: Callable[[str, dict[str, Tensor]], Any]) -> Difference:
    """Args: run: output of the graph of this name for named inputs."""
    image, text = _features(opened, given)
    mask = (torch.arange(given.tokens.shape[1]) < given.lengths[:, None]).long()
    images = run("image", {"pixel_values": given.pixels})
    texts = run("text", {"input_ids": given.tokens.long(), "attention_mask": mask})
    return Difference(_largest(image, torch.as_tensor(images)), _largest(text, torch.as_tensor(texts)), None, None)


def _safetensors(opened: OpenedModel, folder: Path, given: Inputs) -> Difference:
    from clip_lightning.training.any_model import open_model

    other = open_model(folder)
    image, text = _features(opened, given)
    other_image, other_text = _features(other, given)
    tokens, _, _ = other.tokenizer(TEXTS)
    return Difference(
        _largest(image, other_image), _largest(text, other_text), _ids_differ(given, tokens.tolist()), None
    )


_CHECKS: dict[str, Callable[[OpenedModel, Path, Inputs], Difference]] = {
    "transformers": _transformers,
    "open_clip": _open_clip,
    "timm": _timm,
    "sentence-transformers": _sentence_transformers,
    "onnx": _onnx,
    "openvino": _openvino,
    "executorch": _executorch,
    "safetensors": _safetensors,
}
