"""Which attention runs is a matter of speed: in bfloat16 on a CPU plain products, and the gradients are no coarser."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from clip_lightning.model.attention import choose_attention
from clip_lightning.model.clip import build_clip
from clip_lightning.model.flops import count_flops
from clip_lightning.model.named import load


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    torch.backends.cuda.enable_flash_sdp(True)


def gradients(precision: str) -> tuple[dict[str, Tensor], bool]:
    """Of a tower pair with attention in both, and whether a fused kernel ran."""
    model, loss = load("vit_s32")
    model.vision.options.update(depth=2)
    model.text.config["num_hidden_layers"] = 2
    torch.manual_seed(0)
    clip = build_clip(model, loss)
    images, tokens = torch.randn(4, 3, 224, 224), torch.randint(3, 400, (4, 12))
    with torch.profiler.profile() as profile:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            features = clip(images, tokens, torch.tensor([2, 12, 7, 5]))
        (features.image @ features.text.T).diagonal().sum().backward()
    names = [event.key for event in profile.key_averages()]
    found = {name: p.grad for name, p in clip.named_parameters() if p.grad is not None}
    return found, any("flash_attention" in name for name in names)


@pytest.mark.slow
def test_bfloat16_on_a_cpu_takes_plain_products_whose_gradients_are_as_good() -> None:
    exact, is_fused = gradients("fp32")
    assert is_fused
    errors = []
    for on_gpu in (True, False):
        choose_attention("bf16", on_gpu)
        found, is_fused = gradients("bf16")
        assert is_fused == on_gpu
        errors.append(sum(float((found[name] - value).norm()) for name, value in exact.items()))
    assert errors[1] < 1.1 * errors[0], f"summed gradient error {errors[1]}, and {errors[0]} of the fused kernel"
    choose_attention("fp32", on_gpu=False)
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.slow
def test_operations_are_counted_alike() -> None:
    fused = count_flops(*load("vit_s32"))
    choose_attention("bf16", on_gpu=False)
    assert count_flops(*load("vit_s32")) == fused
