"""What a step holds in memory is counted before it is tried, and is what a real step holds."""

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

from clip_lightning.config import compose
from clip_lightning.config.phases import Phase, phases_of
from clip_lightning.config.schema import Config
from clip_lightning.model.clip import build_clip
from clip_lightning.parallel import activation_checkpointing
from clip_lightning.run.plan import memory
from clip_lightning.run.plan.preflight import build_on_meta


def config(*words: str) -> Config:
    found: Config = compose.load("train", ["compute.global_batch=64", *words])
    return found


def phase(found: Config) -> Phase:
    return phases_of(found, total_samples=10_000, epoch_samples=10_000)[0]


def estimate(*words: str) -> memory.Memory:
    found = config(*words)
    return memory.estimate_memory(found, build_on_meta(found), [phase(found)])


@pytest.mark.ci
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
@pytest.mark.parametrize("model", ["tiny", "tiny_double"])
def test_fake_tensors_hold_as_many_bytes_as_real_ones(model: str, checkpointing: str, precision: str) -> None:
    found = config(f"model={model}", f"compute.precision={precision}")
    found.cluster.activation_checkpointing = checkpointing
    clip = build_clip(found.model, found.loss).train()
    activation_checkpointing.apply(clip, checkpointing)
    real = memory.peak_bytes(clip, phase(found), 6, precision)
    assert memory._activation_bytes(found, phase(found), 6) == pytest.approx(real, rel=1e-3)


@pytest.mark.slow
def test_every_setting_that_saves_memory_is_seen() -> None:
    whole = estimate("compute.precision=bf16")
    assert whole.total == sum(getattr(whole, name) for name in memory.Memory.__annotations__)
    assert estimate("compute.precision=bf16", "cluster.micro_batch=16").activations < whole.activations / 2
    full = estimate("compute.precision=bf16", "cluster.activation_checkpointing=full")
    assert full.activations < 0.6 * whole.activations
    assert estimate("compute.precision=fp32").activations > 1.3 * whole.activations
    assert estimate("compute.ema_decay=0.99").weights == 2 * whole.weights


@pytest.mark.slow
def test_shards_divide_weights_gradients_and_optimizer() -> None:
    found = config("cluster=ddp", "cluster.devices=4")
    model, phases = build_on_meta(found), [phase(found)]
    whole = memory.estimate_memory(found, model, phases)
    sharded = memory.estimate_memory(replace(found, cluster=replace(found.cluster, strategy="fsdp")), model, phases)
    assert 4 * sharded.optimizer == whole.optimizer
    second, largest = sorted(memory._unit_sizes(model))[-2:]
    assert 4 * (sharded.weights - 4 * (second + largest)) == whole.weights
    assert 4 * (sharded.gradients - 4 * largest) == whole.gradients
    assert sharded.activations == whole.activations


@pytest.mark.slow
def test_every_weight_is_gathered_with_one_unit() -> None:
    model = build_on_meta(config("model=pair", "model/vision=convnext_base", "model/text=distilbert"))
    sizes = memory._unit_sizes(model)
    assert len(sizes) == len(model.blocks()) + 2
    assert sum(sizes) == memory.num_parameters(model) - model.log_logit_scale.numel()
    assert max(sizes) == sizes[-1]  # the table of the vocabulary


class Asking(nn.Module):
    """A user's tower that looks at its images."""

    num_features = 8

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, self.num_features))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        if images.device.type == "meta" or float(images.sum()) >= 0:
            return features
        return -features


@pytest.mark.slow
def test_the_activations_of_a_tower_that_reads_values_are_not_known() -> None:
    tower = [f"model.vision._target_={Asking.__module__}.Asking", "model.vision.timm=null"]
    found = estimate(*tower)
    assert found.activations is None
    assert found.total == found.weights + found.gradients + found.optimizer + found.loss
