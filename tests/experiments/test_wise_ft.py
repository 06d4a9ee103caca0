"""WiSE-FT: the ends of the interpolation are the two models, the middle is their mean, other models are refused."""

import pytest
import torch

from clip_lightning.errors import UserError
from experiments.studies.wise_ft import check_alike, interpolated, main


def test_the_ends_are_the_models_and_the_middle_is_the_mean() -> None:
    before = {"a": torch.tensor([1.0, 3.0]), "n": torch.tensor(4)}
    after = {"a": torch.tensor([2.0, 7.0]), "n": torch.tensor(9)}
    assert torch.equal(interpolated(before, after, 0)["a"], before["a"])
    assert torch.equal(interpolated(before, after, 1)["a"], after["a"])
    middle = interpolated(before, after, 0.5)
    assert middle["a"].tolist() == [1.5, 5.0]
    assert middle["n"].item() == 9


def test_other_models_and_wrong_arguments_are_refused() -> None:
    with pytest.raises(UserError, match="only one of them has b"):
        check_alike({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(UserError, match="a has another shape"):
        check_alike({"a": torch.ones(1)}, {"a": torch.ones(2)})
    with pytest.raises(UserError, match="is outside of 0"):
        main(["a", "b", "--alphas", "1.5", "--tasks", "shape", "--out", "c"])
    with pytest.raises(UserError, match="nothing to evaluate"):
        main(["a", "b", "--out", "c"])
