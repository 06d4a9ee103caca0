"""A phase changes what a step reads and drops, and nothing that is learned: names, shapes, first weights."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from clip_lightning.config.phases import Phase, phase_at
from clip_lightning.config.schema import Config, PhaseConfig
from clip_lightning.data.batches import Batch
from clip_lightning.model.flops import count_flops
from clip_lightning.parallel import compile
from clip_lightning.training.sample_randomness import sample_keys
from clip_lightning.training.step_context import StepContext
from tests.support.small_run import (
    GLOBAL_BATCH,
    IMAGE_SIZE,
    Recorder,
    Stream,
    check_close,
    fit,
    global_batch,
    small_config,
    small_module,
)

SMALL, SHORT = IMAGE_SIZE // 2, 8
TOWERS = {
    "vit": {},
    "eva": {"timm": "eva02_tiny_patch14_224"},
    "siglip": {"timm": "vit_base_patch16_siglip_224"},
}


def phased_config(tower: str = "vit", image_size: int = SMALL, patch_dropout: float = 0.5) -> Config:
    """Two steps with small images, short texts and half of the patches, then steps in full."""
    config = small_config()
    config.compute.phases = [PhaseConfig("0", image_size, SHORT, patch_dropout), PhaseConfig("2 steps")]
    vision = config.model.vision
    for name, value in TOWERS[tower].items():
        setattr(vision, name, value)
    return config


def batch_of(phase: Phase, step: int) -> Batch:
    """What the loader gives in a phase."""
    whole, size = global_batch(step), phase.image_size
    lengths = whole.lengths.clamp(max=phase.context_length)
    tokens = whole.tokens[:, : phase.context_length].clone()
    tokens[torch.arange(len(tokens)), lengths - 1] = 2
    return whole._replace(images=whole.images[:, :, :size, :size].contiguous(), tokens=tokens, lengths=lengths)


class Phased(IterableDataset[Batch]):
    """The batches of steps `first` to `last` of a run with phases."""

    def __init__(self, module: Recorder, first: int, last: int) -> None:
        self.phases, self.steps = module.phases, range(first, last)

    def __iter__(self) -> Iterator[Batch]:
        return (batch_of(phase_at(self.phases, step * GLOBAL_BATCH), step) for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def first_step(config: Config) -> dict[str, Tensor]:
    module = small_module(config)
    fit(module, Phased(module, 0, 1))
    return {"losses": module.steps[0].loss.reshape(1), **module.gradients}


@pytest.mark.slow
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("micro_batch", [8, 7])
def test_micro_batches_give_the_undivided_gradient_at_a_small_size(tower: str, micro_batch: int) -> None:
    cached = phased_config(tower)
    cached.cluster.micro_batch = micro_batch
    check_close(first_step(cached), first_step(phased_config(tower)), 1e-6)


@pytest.mark.parametrize(("image_size", "patch_dropout"), [(SMALL, 0.0), (IMAGE_SIZE, 0.5)])
def test_size_and_dropout_each_change_the_loss(image_size: int, patch_dropout: float) -> None:
    """Else the test above would show nothing."""
    changed = first_step(phased_config(image_size=image_size, patch_dropout=patch_dropout))["losses"]
    both, neither = (
        first_step(phased_config(image_size=size, patch_dropout=share))["losses"]
        for size, share in ((SMALL, 0.5), (IMAGE_SIZE, 0.0))
    )
    assert min((changed - both).abs(), (changed - neither).abs()) > 1e-3


def test_a_model_with_phases_begins_with_the_same_weights_and_features() -> None:
    phased, plain = small_module(phased_config()).model.eval(), small_module(small_config()).model.eval()
    assert list(phased.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in phased.state_dict().items())
    batch = global_batch(0)
    assert torch.equal(phased.encode_image(batch.images), plain.encode_image(batch.images))


def test_a_step_in_full_is_that_of_a_run_without_phases() -> None:
    phased, plain = small_module(phased_config()), small_module(small_config())
    for module in (phased, plain):
        module.samples_seen = 2 * GLOBAL_BATCH
        fit(module, Stream(2, 4))
    check_close(phased.gradients, plain.gradients, 1e-6)
    assert [step.loss for step in phased.steps] == [step.loss for step in plain.steps]


def test_the_position_table_learns_through_a_small_image() -> None:
    gradients = first_step(phased_config(patch_dropout=0.0))
    table = gradients["vision.backbone.pos_embed"]
    assert table.shape[1] == 1 + (IMAGE_SIZE // 4) ** 2
    assert (table.abs().sum(-1) > 0).all()


def test_a_tower_with_rotary_positions_drops_by_sample() -> None:
    module, images = small_module(phased_config("eva")), global_batch(0).images
    keys = sample_keys(0, torch.zeros(GLOBAL_BATCH, dtype=torch.int64), torch.arange(GLOBAL_BATCH))
    features = []
    for chosen, first in ((keys, 0), (keys[5:9], 5), (keys[6:10], 5)):
        module._prepared.step.context = StepContext(keys=chosen)
        features.append(module.model.encode_image(images[first : first + len(chosen)]))
    whole, part, other_keys = features
    torch.testing.assert_close(part, whole[5:9], rtol=1e-5, atol=1e-6)
    assert (other_keys - part).abs().max() > 1e-3


@pytest.mark.ci
def test_compiled_blocks_follow_a_change_of_size() -> None:
    eager, compiled = (small_module(phased_config()) for _ in range(2))
    compile.apply(compiled.model)
    for module in (eager, compiled):
        fit(module, Phased(module, 0, 4))
    losses = [torch.stack([step.loss for step in module.steps]) for module in (compiled, eager)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_operations_fall_with_size_and_dropout() -> None:
    config = small_config()
    full, dropped, small = (
        count_flops(config.model, config.loss, Phase(0, size, length, share))
        for size, length, share in ((IMAGE_SIZE, 16, 0.0), (IMAGE_SIZE, 16, 0.5), (SMALL, SHORT, 0.0))
    )
    assert full == count_flops(config.model, config.loss)
    assert dropped.text == full.text > small.text
    # 9 of 17 and 5 of 17 tokens; the patch embedding is before the dropout.
    assert 9 / 17 < dropped.image / full.image < 0.65
    assert small.image / full.image < 5 / 17
