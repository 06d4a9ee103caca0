"""A run with phases as a user starts it: small images and short texts, then patch dropout, then all in full."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from clip_lightning.records import read_records
from tests.run.console.test_throughput import counted_flops, recorded_flops
from tests.run.test_resume import assert_bit_equal, final_state, losses

pytestmark = pytest.mark.slow

VIT = [
    "model=pair",
    "model.embed_dim=32",
    "model/text=tiny",
    "model/vision=timm",
    "model.vision.timm=vit_tiny_patch16_224",
    "model.vision.image_size=32",
    "model.vision.options={patch_size:8,embed_dim:32,depth:2,num_heads:2}",
]
# 8 steps of 16: three, three, two.
PHASES = "compute.phases=[{start:0,image_size:16,context_length:8},{start:3 steps,patch_dropout:0.5},{start:75%}]"
SCORED = ["eval=default", "eval.tasks=[handwritten_digits]", "eval.every=0 samples"]


@pytest.fixture(scope="module")
def uninterrupted(runner: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    runs = tmp_path_factory.mktemp("phases")
    return runs, runner.train(runs, *VIT, PHASES, *SCORED)


@pytest.mark.ci
def test_banner_and_records_follow_the_phases(uninterrupted: tuple[Path, str]) -> None:
    runs, printed = uninterrupted
    assert (
        "phases   from 0: 16 pixels, 8 tokens | from 48 (37.5%): 32 pixels, 32 tokens, 50% of patches dropped | "
        "from 96 (75.0%): 32 pixels, 32 tokens"
    ) in printed
    found = recorded_flops(runs / "latest")
    assert found == pytest.approx(counted_flops(runs / "latest"), rel=1e-9)
    assert max(found[:3]) < min(found[3:6]) <= max(found[3:6]) < min(found[6:])


def test_it_is_evaluated_in_full(runner: Any, uninterrupted: tuple[Path, str]) -> None:
    """evaluate.py builds the model as its config says, and knows no phases."""
    run = uninterrupted[0] / "latest"
    child = runner.start("evaluate.py", f"run={run}")
    assert child.wait() == 0, child.text()

    def scores(name: str) -> dict[tuple[str, str], float]:
        return {(row.task, row.what): row.value for row in read_records(run / name) if row.task and row.n}

    alone, amid = scores("evaluation.jsonl"), scores("metrics.jsonl")
    # The calibration error adds up probabilities, which differ by rounding; all others are counts.
    sums = {key for key in amid if key[1] == "ece"}
    assert {key: alone[key] for key in alone.keys() - sums} == {key: amid[key] for key in amid.keys() - sums} != {}
    assert [alone[key] for key in sums] == pytest.approx([amid[key] for key in sums], abs=1e-6)


@pytest.mark.ci
def test_killed_and_stopped_in_each_phase_it_ends_with_the_same_bits(
    runner: Any, uninterrupted: tuple[Path, str], tmp_path: Path, small: list[str]
) -> None:
    argv = [f"runs={tmp_path}", *small, *VIT, PHASES, *SCORED]
    for words, number in (
        ("sample 32/", signal.SIGKILL),
        ("sample 64/", signal.SIGTERM),
        ("sample 112/", signal.SIGKILL),
    ):
        child = runner.start("train.py", *argv)
        child.wait_for(words)
        assert child.kill(number) == (-number if number == signal.SIGKILL else 128 + number), child.text()
    runner.train(tmp_path, *VIT, PHASES, *SCORED)
    assert_bit_equal(final_state(tmp_path), final_state(uninterrupted[0]))
    assert losses(tmp_path) == losses(uninterrupted[0])
    assert json.loads((tmp_path / "latest" / "summary.json").read_text())["restarts"] == 3


@pytest.mark.ci
def test_two_ranks_in_micro_batches_learn_as_one(runner: Any, tmp_path: Path) -> None:
    exact = [*VIT, PHASES, "compute.precision=fp32"]
    runner.train(tmp_path / "one", *exact)
    runner.train(tmp_path / "two", *exact, "cluster=ddp", "cluster.devices=2", "cluster.micro_batch=4", ranks=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = (recorded_flops(tmp_path / runs / "latest") for runs in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize(
    ("tower", "phases", "sentence"),
    [
        ("beit_base_patch16_224", "[{start:50%,image_size:16}]", "image_size=16 does not fit beit_base_patch16_224"),
        ("beit_base_patch16_224", "[{start:50%,patch_dropout:0.5}]", "patch_drop_rate"),
    ],
)
def test_a_tower_that_cannot_is_refused(runner: Any, tmp_path: Path, tower: str, phases: str, sentence: str) -> None:
    words = [*VIT[:-3], f"model.vision.timm={tower}", "model.vision.image_size=32", f"compute.phases={phases}"]
    printed = runner.train(tmp_path, *words, code=2)
    assert sentence in printed
    assert "Traceback" not in printed
