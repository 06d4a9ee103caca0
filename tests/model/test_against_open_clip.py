"""The paper's architectures and their beginnings are open_clip's: the same weights give the same features in both."""

import copy
from functools import partial
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import LayerNorm, TextTransformer
from torch import Tensor, nn

from clip_lightning.config.schema import ModelConfig
from clip_lightning.model.clip import CLIP, build_clip
from clip_lightning.model.convert.open_clip import convert, convert_text, convert_vision
from clip_lightning.model.named import load
from clip_lightning.model.text import TextTower

PIXELS, CONTEXT, VOCABULARY = 64, 20, 120
END = VOCABULARY - 1  # open_clip pools where the largest id is


def small(name: str, width: int = 128) -> ModelConfig:
    """A named model of the paper, with small towers."""
    model, _ = load(name)
    model.embed_dim = 48
    model.vision.image_size = PIXELS
    if model.vision.init == "openai_vit":
        model.vision.options = {"embed_dim": width, "depth": 2, "num_heads": width // 64}
    else:
        model.vision.options["num_classes"] = model.embed_dim
    model.text.config |= {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 2}
    model.text.config |= {"num_attention_heads": width // 64, "vocab_size": VOCABULARY, "bos_token_id": END - 1}
    model.text.config |= {"eos_token_id": END, "max_position_embeddings": CONTEXT}
    model.text.tokenizer.vocab_size, model.text.context_length = VOCABULARY, CONTEXT
    return model


def peer(name: str, width: int = 128) -> nn.Module:
    """The same in open_clip."""
    vision: dict[str, Any] = {"layers": 2, "width": width, "patch_size": 32, "image_size": PIXELS}
    if name == "rn50":
        vision = {"layers": (3, 4, 6, 3), "width": 64, "image_size": PIXELS}
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": width, "heads": width // 64, "layers": 2}
    quick = name in ("vit_b32", "rn50")
    return open_clip.model.CLIP(48, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text), quick_gelu=quick)


def rn50_peer_activation(model: nn.Module) -> None:
    """open_clip's QuickGELU acts in the text tower alone; the ResNet's ReLUs are the paper's."""
    assert {type(module) for name, module in model.visual.named_modules() if ".act" in name} == {nn.ReLU}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(7)
    lengths = torch.tensor([3, 9, CONTEXT, 14])
    tokens = torch.zeros(4, CONTEXT, dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[: length - 1] = torch.randint(1, END, (int(length) - 1,))
        row[length - 1] = END
    return torch.randn(4, 3, PIXELS, PIXELS), tokens, lengths


def loaded_pair(name: str) -> tuple[CLIP, nn.Module]:
    torch.manual_seed(1)
    _, loss = load(name)
    ours, theirs = build_clip(small(name), loss), peer(name)
    generator = torch.Generator().manual_seed(3)
    for module in theirs.modules():  # else the last norm of every residual branch is 0 and hides the branch
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    ours.load_state_dict(convert(theirs.state_dict()))
    return ours, theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b32", "vit_m32", "rn50"])
def test_features_and_logits_are_open_clips(name: str) -> None:
    ours, theirs = loaded_pair(name)
    images, tokens, lengths = batch()
    with torch.no_grad():
        features = ours.eval()(images, tokens, lengths)
        logits = features.logit_scale * features.image @ features.text.T
        expected, _ = theirs.eval().get_logits(images, tokens)
        torch.testing.assert_close(features.image, theirs.encode_image(images, normalize=True), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(features.text, theirs.encode_text(tokens, normalize=True), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.1, "features that are all alike would agree too"


@pytest.mark.slow
def test_resnet_in_training_normalises_as_open_clips() -> None:
    ours, theirs = loaded_pair("rn50")
    rn50_peer_activation(theirs)
    images, _, _ = batch()
    with torch.no_grad():
        image, expected = ours.train().encode_image(images), theirs.train().encode_image(images, normalize=True)
    torch.testing.assert_close(image, expected, atol=2e-6, rtol=1e-5)
    statistics = convert_vision({k: v for k, v in theirs.visual.state_dict().items() if "running" in k or k == "proj"})
    for name, value in statistics.items():
        torch.testing.assert_close(ours.vision.state_dict()[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_padding_that_is_cut_changes_no_text_feature() -> None:
    ours, _ = loaded_pair("vit_b32")
    _, tokens, lengths = batch()
    rows = lengths <= 14
    with torch.no_grad():
        long = ours.eval().encode_text(tokens, lengths)[rows]
        short = ours.encode_text(tokens[rows, :14], lengths[rows])
    torch.testing.assert_close(short, long, atol=2e-6, rtol=0)


def siglip_text() -> tuple[TextTower, nn.Module]:
    model, _ = load("siglip_b16")
    model.text.config |= {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    model.text.config |= {"num_attention_heads": 1, "max_position_embeddings": CONTEXT}
    model.text.tokenizer.vocab_size, model.text.context_length = VOCABULARY, CONTEXT
    norm = partial(LayerNorm, eps=1e-6)
    kind = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_layer": norm}
    theirs = TextTransformer(CONTEXT, VOCABULARY, width=64, heads=1, layers=2, output_dim=48, **kind)
    return TextTower(model.text, 48), theirs


def test_siglip_text_is_open_clips() -> None:
    torch.manual_seed(2)
    ours, theirs = siglip_text()
    ours.load_state_dict(convert_text(theirs.state_dict()))
    _, tokens, lengths = batch()
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(tokens, lengths), theirs.eval()(tokens), atol=1e-6, rtol=1e-5)


def check_beginnings(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Constants equal; random tensors alike in mean, spread and kind of distribution, within sampling error."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        value, n = ours[name].float(), expected.numel()
        expected = expected.float()
        if n == 1 or expected.std() == 0:
            torch.testing.assert_close(value, expected.reshape(value.shape), msg=f"{name} begins constant")
            continue
        spread = expected.std()
        assert abs(value.std() / spread - 1) < 6 / n**0.5, f"{name}: std {value.std()} against {spread}"
        assert abs(value.mean() - expected.mean()) < 8 * spread / n**0.5, f"{name}: mean"
        if n >= 1000:  # uniform numbers end at 1.73 standard deviations, normal ones do not
            assert (value.abs().max() > 2 * value.std()) == (expected.abs().max() > 2 * spread), f"{name}: distribution"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b32", "vit_m32", "rn50"])
def test_every_tensor_begins_as_open_clips(name: str) -> None:
    torch.manual_seed(4)
    _, loss = load(name)
    ours, theirs = build_clip(small(name, 192), loss), peer(name, 192)
    check_beginnings(ours.state_dict(), convert(copy.deepcopy(theirs.state_dict())))


def test_every_tensor_of_siglips_text_begins_as_open_clips() -> None:
    torch.manual_seed(5)
    ours, theirs = siglip_text()
    check_beginnings(ours.state_dict(), convert_text(theirs.state_dict()))
