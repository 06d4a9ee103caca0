"""Learning rates are open_clip's, step by step, and a function of the samples seen alone."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip_train.scheduler import const_lr, const_lr_cooldown, cosine_lr

from clip_lightning.config.schema import ComputeConfig
from clip_lightning.training.schedule import Schedule, build_schedule

BATCH, STEPS, WARMUP, COOLDOWN, PEAK = 32, 200, 20, 50, 3e-4


def schedule(kind: str, **settings: Any) -> Schedule:
    compute = ComputeConfig(
        name="test",
        duration=f"{STEPS} steps",
        global_batch=BATCH,
        learning_rate=PEAK,
        warmup=f"{WARMUP} steps",
        schedule=kind,
        cooldown=f"{COOLDOWN} steps",
        **settings,
    )
    return build_schedule(compute, total_samples=STEPS * BATCH, epoch_samples=1000)


@pytest.mark.parametrize(
    ("kind", "peer", "settings"),
    [
        ("cosine", lambda o: cosine_lr(o, PEAK, WARMUP, STEPS), {}),
        ("constant", lambda o: const_lr(o, PEAK, WARMUP, STEPS), {}),
        ("constant_cooldown", lambda o: const_lr_cooldown(o, PEAK, WARMUP, STEPS, COOLDOWN), {}),
        (
            "constant_cooldown",
            lambda o: const_lr_cooldown(o, PEAK, WARMUP, STEPS, COOLDOWN, 2.0, 1e-6),
            {"cooldown_power": 2.0, "final_learning_rate": 1e-6},
        ),
    ],
)
def test_learning_rate_is_the_peers_at_every_step(kind: str, peer: Any, settings: dict[str, float]) -> None:
    ours, theirs = schedule(kind, **settings), peer(SimpleNamespace(param_groups=[{}]))
    for step in range(STEPS):
        assert ours.learning_rate(step * BATCH) == pytest.approx(theirs(step), rel=1e-12, abs=1e-18)


def test_a_run_without_warmup_begins_at_the_peak() -> None:
    compute = ComputeConfig(name="test", duration="10 steps", global_batch=4, learning_rate=PEAK)
    assert build_schedule(compute, total_samples=40, epoch_samples=40).learning_rate(0) == PEAK


@given(batch=st.sampled_from([1, 2, 4, 8, 16, 32]), samples=st.integers(WARMUP * BATCH, STEPS * BATCH - 1))
def test_after_the_warmup_the_rate_depends_on_samples_not_on_the_batch(batch: int, samples: int) -> None:
    whole, small = (Schedule("cosine", PEAK, 0.0, size, STEPS * BATCH, WARMUP * BATCH, 0, 1.0) for size in (32, batch))
    assert whole.learning_rate(samples) == small.learning_rate(samples)
