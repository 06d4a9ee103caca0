"""The residual tower for small images: one architecture of timm like any other, without a memory of the batch."""

import pytest
import timm
import torch

import clip_lightning.model.small_resnet  # noqa: F401 - registers the architecture

OPTIONS = {"depths": [1, 2], "widths": [16, 32], "num_classes": 0}


def test_timm_knows_it() -> None:
    assert timm.is_model("small_resnet")
    with pytest.raises(RuntimeError, match="No pretrained weights"):
        timm.create_model("small_resnet", pretrained=True)


def test_depths_and_widths_are_what_the_options_say() -> None:
    tower = timm.create_model("small_resnet", **OPTIONS)
    assert [len(stage) for stage in tower.stages] == [1, 2]
    assert tower.num_features == 32
    assert tower.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 32, 8, 8)


def test_an_image_does_not_feel_its_batch_and_every_weight_learns() -> None:
    torch.manual_seed(0)
    tower = timm.create_model("small_resnet", **OPTIONS).train()
    images = torch.randn(4, 3, 32, 32)
    together = tower(images)
    torch.testing.assert_close(together[:1], tower(images[:1]))
    together.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in tower.parameters())
