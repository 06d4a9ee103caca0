"""Batch statistics are shared by groups that the science fixes: ranks and micro-batches change nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clip_lightning.config.schema import Config
from clip_lightning.errors import UserError
from clip_lightning.training import batch_norm
from tests.support.small_run import (
    GLOBAL_BATCH,
    Recorder,
    Stream,
    check_close,
    config_with_batch_norm,
    fit,
    small_module,
)


def trained(config: Config, num_steps: int = 2) -> Recorder:
    module = small_module(config)
    fit(module, Stream(0, num_steps))
    return module


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance, msg=name)


def test_one_group_is_torchs_own_batch_norm() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Sequential(torch.nn.BatchNorm2d(5), torch.nn.ReLU()) for _ in range(2))
    shared = batch_norm.apply(ours, group=8, share=8, micro_batch=8)
    x = torch.randn(8, 5, 4, 4)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for layer, given in zip((ours, theirs), inputs, strict=True):
        layer(given).square().sum().backward()
    shared.commit(torch.zeros(()))
    check_equal(ours.state_dict(), theirs.state_dict(), 1e-6)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [6, 12])
def test_micro_batches_change_nothing(micro_batch: int) -> None:
    whole, cut = trained(config_with_batch_norm(6)), trained(config_with_batch_norm(6, micro_batch))
    check_close(cut.gradients, whole.gradients, 1e-5)
    check_equal(dict(cut.model.named_buffers()), dict(whole.model.named_buffers()), 1e-4)


def test_the_size_of_the_group_is_science() -> None:
    small, large = (trained(config_with_batch_norm(group), 1) for group in (6, 24))
    assert (small.steps[0].loss - large.steps[0].loss).abs() > 1e-3


@pytest.mark.ci
def test_ranks_change_nothing(root: Path, tmp_path: Path) -> None:
    """Four ranks of 6: groups of 6 lie on one rank, groups of 12 on two."""
    cases = [{"loss": "softmax", "micro_batch": None, "batch_norm_samples": group, "num_steps": 2} for group in (6, 12)]
    command = [sys.executable, "-m", "tests.support.small_run", "4", str(tmp_path), json.dumps(cases)]
    subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True, timeout=300)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for case, found in zip(cases, results.values(), strict=True):
        alone = trained(config_with_batch_norm(int(case["batch_norm_samples"])))
        torch.testing.assert_close(found["losses"][0], alone.steps[0].loss, rtol=1e-5, atol=1e-5)
        gradients = {f"gradient {name}": gradient for name, gradient in alone.gradients.items()}
        check_close(found, gradients, 1e-5)
        check_equal(found, {f"buffer {name}": value for name, value in alone.model.named_buffers()}, 1e-3)


def test_groups_that_cannot_be_formed_are_refused() -> None:
    with pytest.raises(UserError, match=r"compute\.batch_norm_samples=6"):
        small_module(config_with_batch_norm(6, micro_batch=4))


def test_a_skipped_step_does_not_change_the_running_statistics() -> None:
    layer = torch.nn.BatchNorm1d(3)
    shared = batch_norm.apply(layer, group=4, share=4, micro_batch=4)
    before = {name: value.clone() for name, value in layer.state_dict().items() if "running" in name}
    layer(torch.full((4, 3), torch.nan))
    shared.commit(torch.ones(()))
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())


def test_a_step_without_samples_does_not_change_the_running_statistics() -> None:
    layer = torch.nn.BatchNorm1d(3)
    shared = batch_norm.apply(layer, group=4, share=4, micro_batch=4)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(torch.randn(4, 3))
    shared.forget()
    shared.commit(torch.zeros(()))
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())


def test_a_recomputation_that_ends_early_counts_no_group_twice() -> None:
    layer, x = torch.nn.BatchNorm1d(3), torch.randn(8, 3) + torch.arange(8)[:, None]
    shared = batch_norm.apply(layer, group=4, share=8, micro_batch=8)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    shared.commit(torch.zeros(()))
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean(0))


def test_a_group_is_at_most_the_global_batch() -> None:
    module = trained(config_with_batch_norm(256), 1)
    assert module.samples_seen == GLOBAL_BATCH
