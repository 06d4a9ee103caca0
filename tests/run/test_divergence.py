"""A run that diverges stops with its sample ids, or goes back and passes them over, to the same bits when killed."""

import json
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_lightning.config import compose
from clip_lightning.records import read_records
from clip_lightning.run.plan.preflight import build_datamodule
from tests.run.test_resume import assert_bit_equal, final_state, losses

pytestmark = pytest.mark.slow

HERE = {"PYTHONPATH": str(Path(__file__).parent)}
TOWER = ["model.vision._target_=poisoned.Tower", "model.vision.timm=null"]
ROLLBACK = ["compute.on_divergence=rollback", "compute.rollback_margin=1 steps"]
NAN = ["loss._target_=poisoned.NanLoss", "compute.nonfinite_limit=3"]
LENGTH = "compute.duration=16 steps"  # of 16 samples
Start = Callable[..., Any]


@pytest.fixture
def start(runner: Any, small: list[str]) -> Start:
    """Starts a small run in which the samples at some positions are poisoned."""

    def started(runs: Path, poisoned: Iterable[int], *argv: str) -> Any:
        settings = [*small, LENGTH, *TOWER, "data._target_=poisoned.PoisonedScenes", *argv]
        ids = f"data.options.poisoned=[{','.join(map(str, ids_at(small, poisoned)))}]"
        return runner.start("train.py", f"runs={runs}", *settings, ids, env=HERE)

    return started


def ids_at(small: list[str], positions: Iterable[int]) -> list[int]:
    """The samples at some positions; the poisoned data has the order of the scenes."""
    order = build_datamodule(compose.load("train", [*small, LENGTH])).order
    ids: list[int] = order.locate(np.array(list(positions), np.int64)).sample_ids.tolist()
    return ids


def skip_windows(runs: Path) -> list[tuple[int, float, int | None]]:
    found = [record for record in read_records(runs / "latest" / "metrics.jsonl") if record.what == "skip_windows"]
    return [(record.samples_seen, record.value, record.n) for record in found]


def divergences(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (runs / "latest" / "divergence.jsonl").read_text().splitlines()]


@pytest.mark.ci
@pytest.mark.parametrize(
    ("argv", "poisoned", "place", "window", "reason"),
    [
        ([*NAN], (96, 144), 64, (80, 80, 80), "was not finite in 3 steps in a row"),
        (
            ["loss._target_=poisoned.HugeLoss", "compute.spike_threshold=200", "compute.spike_window=6",
             "compute.spike_limit=2", "compute.gradient_clip=1"],
            (144, 176), 128, (128, 128, 64), "2 spikes in a row",
        ),
    ],
    ids=["not finite", "spike"],
)  # fmt: skip
def test_a_rollback_skips_its_windows_and_is_bit_equal_however_it_is_killed(
    start: Start, tmp_path: Path, argv: list[str], poisoned: tuple[int, int], place: int,
    window: tuple[int, int, int], reason: str,
) -> None:  # fmt: skip
    argv = [*argv, *ROLLBACK]
    whole = start(tmp_path / "whole", range(*poisoned), *argv)
    assert whole.wait() == 0, whole.text()
    (line,) = (line for line in whole.text().splitlines() if line.startswith(f"rollback 1 of 3 to {place} samples: "))
    assert reason in line
    assert skip_windows(tmp_path / "whole") == [window]
    summary = json.loads((tmp_path / "whole" / "latest" / "summary.json").read_text())
    assert (summary["status"], summary["samples"], summary["rollbacks"]) == ("finished", 256, 1)
    assert all(np.isfinite(loss) and loss < 10 for loss in losses(tmp_path / "whole").values())

    for words in ("rollback 1 of 3", "sample 240/"):
        child = start(tmp_path / "cut", range(*poisoned), *argv)
        child.wait_for(words)
        child.kill()
    last = start(tmp_path / "cut", range(*poisoned), *argv)
    assert last.wait() == 0, last.text()
    assert_bit_equal(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert skip_windows(tmp_path / "cut") == [window]


def test_a_run_that_stops_writes_its_sample_ids_and_may_resume_past_them(
    start: Start, small: list[str], tmp_path: Path
) -> None:
    positions = range(96, 144)
    stopped = start(tmp_path, positions, *NAN)
    assert stopped.wait() == 2, stopped.text()
    assert "Traceback" not in stopped.text()
    (line,) = divergences(tmp_path)
    assert str(tmp_path / "latest") not in stopped.text(), "the directory itself is named"
    assert "divergence.jsonl: look at them" in stopped.text()
    assert [step["samples_seen"] for step in line["steps"]] == [96, 112, 128]
    assert [one for step in line["steps"] for one in step["sample_ids"]] == ids_at(small, positions)
    assert {step["loss"] for step in line["steps"]} == {"nan"}
    status = json.loads((tmp_path / "latest" / "status.json").read_text())
    assert (status["status"], "3 steps in a row" in status["reason"]) == ("failed", True)

    resumed_run = start(tmp_path, positions, *NAN, "compute.on_divergence=rollback")
    assert resumed_run.wait() == 0, resumed_run.text()
    assert "rollback 1 of 3 to 0 samples" in resumed_run.text()
    assert skip_windows(tmp_path) == [(0, 0, 144 + 100 * 16)]


def test_a_run_goes_back_only_so_often(start: Start, tmp_path: Path) -> None:
    child = start(tmp_path, range(96, 320), *NAN, *ROLLBACK, "compute.rollback_limit=1")
    assert child.wait() == 2, child.text()
    assert "after compute.rollback_limit=1 rollbacks" in child.text()
    first, second = divergences(tmp_path)
    assert (first["skip_windows"], second["skip_windows"]) == ([80, 160], None)
    assert [step["samples_seen"] for step in second["steps"]] == [80, 96, 112]


@pytest.mark.ci
def test_two_ranks_go_back_together_for_what_one_has_met(start: Start, small: list[str], tmp_path: Path) -> None:
    of_rank_1 = [step * 16 + k for step in (6, 7, 8) for k in range(8, 16)]
    argv = [*NAN, *ROLLBACK, "cluster=ddp", "cluster.devices=2", "cluster.log_every=4 steps"]
    whole = start(tmp_path / "whole", of_rank_1, *argv)
    assert whole.wait() == 0, whole.text()
    assert "rollback 1 of 3 to 64 samples" in whole.text()
    (line,) = divergences(tmp_path / "whole")
    ids = ids_at(small, range(96, 144))
    assert [one for step in line["steps"] for one in step["sample_ids"]] == ids
    cut = start(tmp_path / "cut", of_rank_1, *argv)
    cut.wait_for("rollback 1 of 3")
    assert cut.kill(signal.SIGTERM) == 128 + signal.SIGTERM, cut.text()
    last = start(tmp_path / "cut", of_rank_1, *argv)
    assert last.wait() == 0, last.text()
    assert_bit_equal(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))
