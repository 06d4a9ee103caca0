"""Activations that are computed again give the same gradients to the bit, and less is kept."""

import pytest
import torch
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType

from clip_lightning.errors import UserError
from clip_lightning.model.clip import CLIP
from clip_lightning.parallel import activation_checkpointing
from tests.support.small_run import global_batch, small_config, small_module


def model_with(kind: str) -> CLIP:
    config = small_config()
    config.model.vision.options["depth"] = config.model.text.config["num_hidden_layers"] = 6
    model = small_module(config).model
    activation_checkpointing.apply(model, kind)
    return model


def gradients(model: CLIP) -> tuple[dict[str, Tensor], int]:
    """Of a step, and the most bytes that lived at once in it beside weights and gradients."""
    batch, tracker = global_batch(0), MemTracker()
    tracker.track_external(model)
    with tracker:
        features = model(batch.images, batch.tokens, batch.lengths)
        (features.image * features.text).sum().backward()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    bytes_kept = sum(size for kind, size in peak.items() if kind in (_MemRefType.ACT, _MemRefType.TEMP))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, bytes_kept


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["full", "selective"])
def test_gradients_are_equal_to_the_bit(kind: str) -> None:
    whole, found = (gradients(model_with(k))[0] for k in ("none", kind))
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_names_in_the_state_dict_stay() -> None:
    assert model_with("full").state_dict().keys() == model_with("none").state_dict().keys()


@pytest.mark.ci
def test_selective_keeps_less_and_full_far_less() -> None:
    whole, selective, full = (gradients(model_with(kind))[1] for kind in ("none", "selective", "full"))
    assert selective < 0.75 * whole
    assert full < 0.3 * selective


def test_an_unknown_kind_is_reported() -> None:
    with pytest.raises(UserError, match=r"cluster\.activation_checkpointing=some"):
        model_with("some")
