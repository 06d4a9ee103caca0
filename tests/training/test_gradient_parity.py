"""The gradient of a global batch is one object: whatever the ranks, the micro-batch and what is dropped at random."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from clip_lightning.config.schema import Config
from tests.loss.peers import peers_distillation
from tests.support.small_run import (
    GLOBAL_BATCH,
    Recorder,
    Stream,
    check_close,
    fit,
    global_batch,
    small_config,
    small_module,
    teacher_run,
)

LOSSES = ("distill", "sigmoid", "softmax")
STRATEGIES = {2: ("ddp", "fsdp"), 4: ("ddp", "hsdp")}
MICRO_BATCHES = {1: (None, 8, 7), 2: (None, 6, 5), 4: (None, 3, 4)}  # whole, even, with a smaller last one
Run = dict[str, Tensor]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_run(tmp_path_factory.mktemp("runs") / "teacher")


@pytest.fixture(scope="module")
def ranks(root: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Run]]:
    """The first step of every case on a number of ranks."""

    @cache
    def run(world: int) -> dict[str, Run]:
        folder = tmp_path_factory.mktemp(f"world{world}")
        cases = [
            {
                "loss": loss,
                "micro_batch": micro_batch,
                "drop": drop,
                "teacher": teacher_of(loss, teacher),
                "strategy": strategy,
                "shard_size": 2 if strategy == "hsdp" else None,
            }
            for strategy in STRATEGIES[world]
            for loss in LOSSES
            for micro_batch in MICRO_BATCHES[world]
            for drop in (0.0, 0.4)
        ]
        command = [sys.executable, "-m", "tests.support.small_run", str(world), str(folder), json.dumps(cases)]
        subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True, timeout=300)
        results = torch.load(folder / "results.pt", weights_only=True)
        return {
            f"{case['strategy']}-{case['loss']}-{case['micro_batch']}-{case['drop']}": results[str(k)]
            for k, case in enumerate(cases)
        }

    return run


def teacher_of(loss: str, teacher: Path) -> str | None:
    return str(teacher) if loss == "distill" else None


def config_of(loss: str, teacher: Path) -> Config:
    config = small_config(loss)
    config.loss.teacher = teacher_of(loss, teacher)
    return config


def one_rank(config: Config, micro_batch: int | None, drop: float) -> Run:
    config.cluster.micro_batch = micro_batch
    config.model.vision.patch_dropout = config.model.vision.drop_path = drop
    module = small_module(config)
    fit(module, Stream(0, 1))
    gradients = {f"gradient {name}": gradient for name, gradient in module.gradients.items()}
    return {"losses": module.steps[0].loss.reshape(1), **gradients}


def peer(config: Config) -> Run:
    """One process, the whole batch, the peer's loss."""
    module: Recorder = small_module(config)
    batch, model = global_batch(0), module.model
    features = model(batch.images, batch.tokens, batch.lengths)
    if module.teacher is not None:
        taught = module.teacher.features(*batch[:3], batch=GLOBAL_BATCH, autocast=nullcontext())
        value = peers_distillation(features.image, features.text, features.logit_scale, taught)
    elif features.logit_bias is not None:
        value = SigLipLoss()(features.image, features.text, features.logit_scale, logit_bias=features.logit_bias)
    else:
        value = ClipLoss()(features.image, features.text, features.logit_scale)
    value.backward()
    gradients = {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": value.detach().reshape(1), **gradients}


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_one_process_gives_the_peers_gradient(loss: str, teacher: Path) -> None:
    check_close(one_rank(config_of(loss, teacher), None, 0.0), peer(config_of(loss, teacher)), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("micro_batch", [8, 7])
@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_give_the_undivided_gradient(loss: str, micro_batch: int, drop: float, teacher: Path) -> None:
    whole = one_rank(config_of(loss, teacher), None, drop)
    check_close(one_rank(config_of(loss, teacher), micro_batch, drop), whole, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.ci)])
def test_ranks_give_one_process_gradient(
    ranks: Callable[[int], dict[str, Run]], world: int, loss: str, drop: float, teacher: Path
) -> None:
    expected = one_rank(config_of(loss, teacher), None, drop)
    for micro_batch in MICRO_BATCHES[world]:
        for strategy in STRATEGIES[world]:
            check_close(ranks(world)[f"{strategy}-{loss}-{micro_batch}-{drop}"], expected, 1e-6)


def test_patch_dropout_and_drop_path_change_the_gradient() -> None:
    """Else the tests above would show nothing."""
    dropped, whole = one_rank(small_config(), None, 0.4), one_rank(small_config(), None, 0.0)
    assert (dropped["losses"] - whole["losses"]).abs() > 1e-2
    assert GLOBAL_BATCH % 7, "the last micro-batch is smaller"
