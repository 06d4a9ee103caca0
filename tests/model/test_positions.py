"""Position embeddings of smaller images: the fixed matrix product gives what torch's bicubic interpolation gives."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from clip_lightning.config.phases import Phase
from clip_lightning.config.schema import VisionConfig
from clip_lightning.model.vision import VisionTower

SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "deit_tiny_distilled_patch16_224"])
def test_a_smaller_image_gives_timms_features_and_gradients(name: str) -> None:
    options = SMALL if name.startswith("vit") else {}
    patch = 14 if name.startswith("eva") else 16
    config = VisionConfig(name="small", timm=name, image_size=7 * patch, options=dict(options))
    torch.manual_seed(0)
    tower = VisionTower(config, 16, [Phase(0, 4 * patch, 8, 0.0)])
    nn.init.normal_(tower.backbone.pos_embed)
    images, direction = torch.randn(2, 3, 4 * patch, 4 * patch), torch.randn(tower.width)

    def run(forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        tower.zero_grad()
        features = forward(images)
        (features @ direction).sum().backward()
        gradient = tower.backbone.pos_embed.grad
        assert gradient is not None
        return features.detach(), gradient.clone()

    (ours, our_gradient), (theirs, their_gradient) = run(tower.pooled), run(tower.backbone)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-5 * float(their_gradient.abs().max()))


def test_no_interpolation_is_left_whose_backward_pass_is_not_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    config = VisionConfig(name="small", timm="vit_tiny_patch16_224", image_size=64, options=dict(SMALL))
    tower = VisionTower(config, 16, [Phase(0, 32, 8, 0.0)])
    assert timm.is_model(str(config.timm))
    monkeypatch.setattr(nn.functional, "interpolate", None)
    assert tower(torch.randn(2, 3, 32, 32)).shape == (2, 16)
