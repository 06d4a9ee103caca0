"""A run that is killed and resumed ends with the weights of the run that never was, bit by bit."""

import json
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_lightning.config import compose
from clip_lightning.records import read_records
from clip_lightning.reliability.checkpoint import CheckpointFolder, name_of
from clip_lightning.reliability.run_paths import directory_of
from tests.support.runner import SMALL

pytestmark = pytest.mark.slow


def final_state(runs: Path) -> dict[str, Any]:
    """Weights, optimizer and counters of the newest checkpoint, as one flat dictionary."""
    checkpoint = CheckpointFolder(runs / "latest" / "checkpoints", keep_last=2).newest()
    assert checkpoint is not None
    return flat({"weights": checkpoint.load("weights"), "training": checkpoint.load("training")})


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict | list):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: leaf for name, value in pairs for key, leaf in flat(value, f"{prefix}/{name}").items()}
    return {prefix: tree}


def assert_bit_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[key]), key
        else:
            assert value == b[key], key


def losses(runs: Path) -> dict[int, float]:
    rows = [record for record in read_records(runs / "latest" / "metrics.jsonl") if record.what == "loss"]
    assert len({record.samples_seen for record in rows}) == len(rows), "an interval was recorded twice"
    return {record.samples_seen: record.value for record in rows}


@pytest.fixture(scope="module")
def uninterrupted(runner: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("uninterrupted")
    runner.train(runs)
    return runs


@pytest.mark.ci
def test_two_runs_of_one_config_agree_to_the_bit(runner: Any, uninterrupted: Path, tmp_path: Path) -> None:
    runner.train(tmp_path)
    assert_bit_equal(final_state(tmp_path), final_state(uninterrupted))
    assert losses(tmp_path) == losses(uninterrupted)


@pytest.mark.ci
def test_kill_and_resume_is_bit_equal(runner: Any, uninterrupted: Path, tmp_path: Path, small: list[str]) -> None:
    draw, kills = random.Random(1), 0
    for words in ("sample 16/", "sample 48/", "sample 80/", "sample 112/"):
        child = runner.start("train.py", f"runs={tmp_path}", *small)
        child.wait_for(words)
        time.sleep(0.15 * draw.random())
        kills += child.kill() == -signal.SIGKILL
    assert kills == 4
    assert "resumed at " in runner.train(tmp_path)
    assert_bit_equal(final_state(tmp_path), final_state(uninterrupted))
    assert losses(tmp_path) == losses(uninterrupted)
    summary = json.loads((tmp_path / "latest" / "summary.json").read_text())
    assert (summary["status"], summary["samples"], summary["restarts"]) == ("finished", 128, 4)


@pytest.mark.ci
def test_after_a_resume_a_row_covers_its_whole_interval(runner: Any, tmp_path: Path) -> None:
    every = "cluster.log_every=4 steps"
    runner.train(tmp_path / "whole", every)
    runner.train(tmp_path / "cut", every, "trainer.limit_train_batches=3")
    runner.train(tmp_path / "cut", every)
    whole, cut = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert whole.keys() == {64, 128}
    assert {samples: cut[samples] for samples in whole} == whole


@pytest.mark.ci
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_resumes(
    runner: Any, uninterrupted: Path, tmp_path: Path, small: list[str], number: int
) -> None:
    argv = [f"runs={tmp_path}", *small, "cluster.checkpoint_every=0 samples"]
    saved = tmp_path / "saved.txt"
    child = runner.start("train.py", *argv, env={"CLIP_LIGHTNING_SAVED": str(saved)})
    child.wait_for("sample 32/")
    assert child.kill(number) == 128 + number, child.text()
    assert saved.read_text() == f"{signal.Signals(number).name}\n"
    status = json.loads((tmp_path / "latest" / "status.json").read_text())
    assert status["status"] == "stopped"
    assert signal.Signals(number).name in status["reason"]
    assert 32 <= status["samples_seen"] < 128
    assert (tmp_path / "latest" / "checkpoints" / name_of(status["samples_seen"])).is_dir()
    assert "resume" in child.text()
    runner.train(tmp_path, "cluster.checkpoint_every=0 samples")
    assert_bit_equal(final_state(tmp_path), final_state(uninterrupted))
    assert losses(tmp_path) == losses(uninterrupted)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(
    runner: Any, uninterrupted: Path, tmp_path: Path, small: list[str]
) -> None:
    child = runner.start("train.py", f"runs={tmp_path}", *small)
    child.wait_for("sample 96/")
    child.kill()
    newest = CheckpointFolder(tmp_path / "latest" / "checkpoints", keep_last=2).numbers()[0]
    file = tmp_path / "latest" / "checkpoints" / name_of(newest) / "weights.pt"
    file.write_bytes(file.read_bytes()[:-1])
    printed = runner.train(tmp_path)
    assert f"{name_of(newest)} is damaged" in printed
    assert f"resumed at {newest - 32} samples" in printed
    assert_bit_equal(final_state(tmp_path), final_state(uninterrupted))


@pytest.mark.ci
def test_two_ranks_learn_as_one_and_resume_to_the_bit(runner: Any, tmp_path: Path, small: list[str]) -> None:
    ddp = ["cluster=ddp", "cluster.devices=2", "compute.precision=fp32"]
    runner.train(tmp_path / "whole", *ddp, ranks=2)
    runner.train(tmp_path / "one rank", "compute.precision=fp32")
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "one rank"), rel=1e-5)
    child = runner.start("train.py", f"runs={tmp_path / 'cut'}", *small, *ddp)
    child.wait_for("sample 64/")
    assert child.kill(signal.SIGTERM) == 128 + signal.SIGTERM, child.text()
    runner.train(tmp_path / "cut", *ddp)
    assert_bit_equal(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(list((tmp_path / "cut").iterdir())) == 2, "one directory and the link to it"


@pytest.mark.ci
def test_the_default_run_has_the_same_first_fifty_losses_on_two_ranks(runner: Any, tmp_path: Path) -> None:
    """As configured, to 1e-5: what magnifies rounding (a pick of near ties, say) does not belong there."""
    found = []
    for name, machine in (("one", []), ("two", ["cluster=ddp", "cluster.devices=2"])):
        settings = ["compute.precision=fp32", "logger=none", "cluster.log_every=1 steps", "eval=none"]
        child = runner.start("train.py", f"runs={tmp_path / name}", *settings, *machine)
        child.wait_for("sample 6.4k/")
        child.kill(signal.SIGINT)
        found.append(list(losses(tmp_path / name).values())[:50])
    assert len(found[0]) == 50
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.ci
@pytest.mark.parametrize(("before", "after"), [("softmax", "sigmoid"), ("sigmoid", "softmax")])
def test_a_run_continues_with_what_its_message_proposes_to_allow(
    before: str, after: str, runner: Any, tmp_path: Path
) -> None:
    runner.train(tmp_path, f"loss={before}", "compute.duration=4 steps")
    settings = [f"loss={after}", "compute.duration=8 steps"]
    renamed = directory_of(compose.load("train", [f"runs={tmp_path}", *SMALL, *settings]))
    (tmp_path / "latest").resolve().rename(renamed)
    refused = runner.train(tmp_path, *settings, code=2)
    proposed = re.search(r"allow_changed=\[[^]]*\]", refused)
    assert proposed is not None, refused
    assert "logit_bias" in runner.train(tmp_path, *settings, proposed[0])
    assert max(losses(tmp_path)) == 8 * 16
    assert ("/weights/model.logit_bias" in final_state(tmp_path)) == (after == "sigmoid")
