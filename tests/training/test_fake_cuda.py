"""A training step on a GPU that is not there: all tensors are on one device, and the host waits for it nowhere.

Gradients are made up, since autograd cannot run backward without a CUDA context; all else is the step's own code.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_lightning.config import compose
from clip_lightning.config.lengths import Lengths
from clip_lightning.config.schema import Config, PhaseConfig
from clip_lightning.data.batches import Batch
from clip_lightning.evaluation.counts import ClassAccuracy, Scored, SetAccuracy
from clip_lightning.evaluation.metrics import (
    Anchors,
    Calibration,
    Jaccard,
    MacroF1,
    MeanAveragePrecision,
    RocAuc,
    TopMean,
    WorstGroup,
)
from clip_lightning.reliability.nan_guard import DELAY
from clip_lightning.training import gradient_cache
from clip_lightning.training.clip_module import ClipModule
from tests.support.fake_cuda import CUDA, FakeCuda, FakeEvent, fake_cuda
from tests.support.small_run import config_with_batch_norm, global_batch, small_config, teacher_run

METRICS = [ClassAccuracy, SetAccuracy, Calibration, TopMean, MacroF1, WorstGroup, Anchors, RocAuc]
METRICS += [MeanAveragePrecision, Jaccard]
NAMED_MODELS = ["tiny", "vit_b32", "rn50", "siglip_b16"]


class _Step(ClipModule):
    """A module outside of a Trainer, with made-up gradients."""

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return self.own_optimizer

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        return

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        assert loss.device == CUDA
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)


class _Optimizer:
    """What a module sees of its optimizer under Lightning."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups
        self.zero_grad, self.step = optimizer.zero_grad, optimizer.step


def built(config: Config) -> _Step:
    return _Step(config, Lengths(20 * config.compute.global_batch, config.compute.global_batch))


def on_gpu(config: Config, mode: FakeCuda, module: Any = None) -> _Step:
    """The module of a run as it is at the first step."""
    module = module or built(config)
    mode.move(module)
    if module.teacher is not None:
        mode.move(module.teacher.model)
    module._device = CUDA
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(), model=module, should_stop=False)
    module.own_optimizer = _Optimizer(module.configure_optimizers())
    module.on_train_start()
    return module


def transferred(module: ClipModule, batch: Batch) -> Batch:
    """The batch as Lightning puts it on the device."""
    module.on_before_batch_transfer(batch, 0)
    return Batch(*(value.to(CUDA, non_blocking=True) if isinstance(value, Tensor) else value for value in batch))


def step(config: Config, num_steps: int = 1, module: _Step | None = None) -> FakeCuda:
    """Steps on the device; their syncs are noted."""
    with fake_cuda() as mode:
        module = on_gpu(config, mode, module)
        mode.syncs.clear()
        for number in range(num_steps):
            module.training_step(transferred(module, global_batch(number)), number)
        metrics = module.last_step
        assert metrics.loss.device == metrics.gradient_norm.device == metrics.accuracy.device == CUDA
    return mode


@pytest.fixture(autouse=True)
def made_up_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the loss's inputs in cached gradients, which call autograd themselves."""

    def grad(loss: Tensor, leaves: list[Tensor], **settings: Any) -> list[Tensor]:
        return [torch.empty_like(leaf) for leaf in leaves]

    monkeypatch.setattr(gradient_cache.torch.autograd, "grad", grad)


def changed(config: Config, **settings: Any) -> Config:
    """`section__key=value`, as on the command line."""
    for name, value in settings.items():
        *sections, key = name.split("__")
        owner: Any = config
        for section in sections:
            owner = getattr(owner, section)
        setattr(owner, key, value)
    return config


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16, average of weights": {"compute__precision": "bf16", "compute__ema_decay": 0.9},
    "fp16": {"compute__precision": "fp16"},
    "no clipping": {"compute__gradient_clip": None},
    "cached gradients": {"cluster__micro_batch": 8},
    "duplicates": {"loss__duplicates": "positives"},
    "locked image tower": {"model__vision__locked": True, "cluster__micro_batch": 8},
    "locked text tower": {"model__text__locked": True},
    "an optimizer without found_inf": {"optimizer___target_": "torch.optim.SGD"},
    "spikes": {"compute__spike_threshold": 6.0},
    "phases": {"compute__phases": [PhaseConfig("1 steps", patch_dropout=0.5), PhaseConfig("2 steps")]},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_of_a_step_leaves_a_tensor_behind_or_waits_for_the_device(name: str) -> None:
    mode = step(changed(small_config(), **SETTINGS[name]), num_steps=2 if name == "phases" else 1)
    # An optimizer that cannot skip a step on the device asks once whether to.
    assert mode.syncs == ({"optimizer.py:step_unless": 1} if "optimizer___target_" in SETTINGS[name] else {})


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid"])
def test_no_loss_leaves_a_tensor_behind_or_waits_for_the_device(loss: str) -> None:
    assert step(small_config(loss)).syncs == {}


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [None, 8])
def test_a_teacher_stays_on_the_device(micro_batch: int | None, tmp_path: Path) -> None:
    config = small_config("distill")
    config.loss.teacher, config.cluster.micro_batch = str(teacher_run(tmp_path / "teacher")), micro_batch
    assert step(config, module=built(config)).syncs == {}  # a file is read on the host alone


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [None, 12])
def test_grouped_batch_norm_stays_on_the_device(micro_batch: int | None) -> None:
    assert step(config_with_batch_norm(12, micro_batch)).syncs == {}


@pytest.mark.slow
def test_the_guard_reads_a_step_only_when_its_copy_has_long_arrived() -> None:
    with fake_cuda() as mode:
        module, before = on_gpu(small_config(), mode), FakeEvent.waited
        for number in range(DELAY + 2):
            assert FakeEvent.waited - before == max(0, number - DELAY)
            mode.syncs.clear()
            module.training_step(transferred(module, global_batch(number)), number)
            assert set(mode.syncs) <= {"nan_guard.py:_read"}  # of a pinned copy, after its event


@pytest.mark.parametrize("groups", [None, np.arange(12) % 3])
@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
def test_no_metric_waits_for_the_device_or_leaves_a_tensor_behind(metric: Any, groups: np.ndarray | None) -> None:
    several = metric in {SetAccuracy, MeanAveragePrecision, Jaccard}
    with fake_cuda() as mode:
        own = metric(5, groups, ("a", "b", "c")).to(CUDA)
        labels = (
            torch.zeros((12, 5), dtype=torch.bool, device=CUDA)
            if several
            else torch.zeros(12, dtype=torch.int64, device=CUDA)
        )
        scored = Scored(
            torch.zeros(12, 5, device=CUDA), labels, torch.arange(12, device=CUDA), torch.ones(1, device=CUDA)
        )
        mode.syncs.clear()
        own.update(scored)
        states = [
            part
            for state in own._defaults
            for part in (getattr(own, state) if isinstance(getattr(own, state), list) else [getattr(own, state)])
        ]
        assert states
        assert {part.device for part in states} == {CUDA}
        assert mode.syncs == {}


def test_a_forgotten_tensor_and_a_read_are_found() -> None:
    with fake_cuda() as mode:
        on_device = torch.zeros(3, device=CUDA)
        with pytest.raises(RuntimeError, match="device"):
            on_device + torch.zeros(3)
        assert mode.syncs == {}
        on_device.sum().item()
        assert mode.syncs.total() == 1
        on_device[torch.tensor([1])]
        assert mode.syncs.total() == 2
        torch.zeros(3).to(CUDA, non_blocking=True)
        assert mode.syncs.total() == 2
        on_device.cpu()
        assert mode.syncs.total() == 3


def pairs(config: Config) -> Batch:
    """A global batch of noise in the sizes of a named model."""
    num, length, size = config.compute.global_batch, config.model.text.context_length, config.model.vision.image_size
    tokens, lengths = torch.ones(num, length, dtype=torch.int64), torch.tensor([3, length])
    images = torch.zeros(num, 3, size, size, dtype=torch.uint8)
    return Batch(images, tokens, lengths, torch.arange(num), torch.arange(num), 0)


@pytest.mark.ci
@pytest.mark.parametrize("name", NAMED_MODELS)
def test_a_step_of_a_named_model_stays_on_the_device(name: str) -> None:
    small = ["data=scenes", "compute.global_batch=2", "compute.batch_norm_samples=2", "compute.precision=bf16"]
    config = compose.load("train", [f"model={name}", *small, "compute.ema_decay=0.9"], check=False)
    config.compute.warmup = "0 steps"
    with fake_cuda() as mode:
        module = on_gpu(config, mode)
        mode.syncs.clear()
        module.training_step(transferred(module, pairs(config)), 0)
        assert mode.syncs == {}
