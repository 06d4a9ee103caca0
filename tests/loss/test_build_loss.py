"""A loss is chosen by its name or by the user's import path, and what does not fit is refused in one sentence."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clip_lightning.config.schema import LossConfig
from clip_lightning.errors import UserError
from clip_lightning.loss import LOSSES, LossOutput, SigmoidLoss, SoftmaxLoss, build_loss, needs_teacher


class OwnLoss(nn.Module):
    """A user's own, which knows no tiles: mean squared distance of the pairs."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | None) -> LossOutput:
        return LossOutput(self.weight * (image - text).pow(2).sum(1).mean(), torch.zeros(()))


BILINEAR = ("in1_features", "in2_features", "out_features")


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_registered_loss_is_built_by_name(name: str) -> None:
    loss: Any = build_loss(LossConfig(name=name, chunk=7, teacher="runs/a" if needs_teacher(LOSSES[name]) else None))
    assert type(loss) is LOSSES[name]
    assert loss.chunk == 7


def test_a_users_own_loss_is_built_by_its_import_path() -> None:
    loss = build_loss(LossConfig(name="mine", _target_=f"{__name__}.OwnLoss", options={"weight": 2.0}))
    assert loss(torch.ones(3, 2), torch.zeros(3, 2), torch.ones(1), None).loss.item() == 4.0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LossConfig(name="softmx"), "softmax"),
        (LossConfig(name="softmax", options={"temperature": 2}), "temperature"),
        (LossConfig(name="softmax", teacher="runs/a"), "has no teacher"),
        (LossConfig(name="distill"), "write loss.teacher=DIR"),
        (LossConfig(name="distill", teacher="runs/a", options={"weight": 0.0}), "above 0 and at most 1"),
        (LossConfig(name="distill", teacher="runs/a", options={"weight": "much"}), "do not fit the loss distill"),
        (LossConfig(name="softmax", options={"chunk": 5}), r"as loss\.chunk"),
        (LossConfig(name="mine", _target_="nowhere.at.all"), "cannot be imported"),
        (
            LossConfig(name="mine", _target_="torch.nn.Bilinear", options=dict.fromkeys(BILINEAR, 2)),
            "nothing would train",
        ),
    ],
)
def test_what_does_not_fit_is_reported(config: LossConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_loss(config)


@pytest.mark.parametrize("loss", [SoftmaxLoss(7), SigmoidLoss(7)], ids=["softmax", "sigmoid"])
def test_features_that_are_no_pairs_are_refused(loss: torch.nn.Module) -> None:
    scale, bias, pairs = torch.ones(1), torch.zeros(1), torch.ones(3, 2)
    for text, words in [
        (pairs.bfloat16(), "torch.bfloat16"),
        (pairs[:2], "must be pairs"),
        (pairs[:, :1], "same width"),
    ]:
        with pytest.raises(UserError, match=words):
            loss(pairs, text, scale, bias)
    with pytest.raises(UserError, match="b above 0"):
        loss(pairs[:0], pairs[:0], scale, bias)
