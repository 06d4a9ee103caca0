"""Activations that are computed again give the same gradients to the bit, and less is kept."""

import pytest
import torch
from torch import Tensor

from clip_lightning.errors import UserError
from clip_lightning.model.clip import CLIP
from clip_lightning.parallel import activation_checkpointing
from tests.training.small_run import global_batch, small_config, small_module


def model_with(kind: str) -> CLIP:
    config = small_config()
    config.model.vision.options["depth"] = config.model.text.config["num_hidden_layers"] = 6
    model = small_module(config).model
    activation_checkpointing.apply(model, kind)
    return model


def gradients(model: CLIP) -> tuple[dict[str, Tensor], int]:
    """Of a step, and the bytes of the activations that the graph kept for it."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = global_batch(0)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        features = model(batch.images, batch.tokens, batch.lengths)
    (features.image * features.text).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_gradients_are_equal_to_the_bit(kind: str) -> None:
    whole, found = (gradients(model_with(k))[0] for k in ("none", kind))
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_names_in_the_state_dict_stay() -> None:
    assert model_with("full").state_dict().keys() == model_with("none").state_dict().keys()


def test_full_keeps_far_less() -> None:
    whole, full = (gradients(model_with(kind))[1] for kind in ("none", "full"))
    assert full < whole / 3


def test_an_unknown_kind_is_said() -> None:
    with pytest.raises(UserError, match=r"cluster\.activation_checkpointing=some"):
        model_with("some")
