"""What a run leaves for its report and for `runs diff`: first_step.json, representation health, report.html."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_lightning.config import compose
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.records import read_records
from clip_lightning.report import page
from clip_lightning.run.first_step import digests
from clip_lightning.run.report import write_report
from clip_lightning.training.clip_module import ClipModule
from clip_lightning.training.representation_health import NAMES
from tests.support.run_directories import write_run
from tests.support.runner import Runner

HEALTH = [
    "callbacks=representation_health",
    "callbacks.representation_health.pairs=24",
    "data.validation.num_samples=64",
    "eval=default",
    "eval.tasks=[]",
    "eval.every=4 steps",
]


def health_of(run: Path) -> dict[tuple[str, int], float]:
    records = [record for record in read_records(run / "metrics.jsonl") if record.task == "representation"]
    return {(record.what, record.samples_seen): record.value for record in records}


@pytest.mark.slow
def test_a_run_records_its_first_step_its_health_and_its_report(runner: Runner, tmp_path: Path) -> None:
    runner.train(tmp_path, *HEALTH)
    run = (tmp_path / "latest").resolve()
    found = health_of(run)
    assert found.keys() == {(what, seen) for what in NAMES for seen in (64, 128)}
    assert 1 < found["rankme_image", 64] <= 24
    config = compose.read(run / "config.yaml")
    first: dict[str, Any] = json.loads((run / "first_step.json").read_text())
    ids = ContrastiveDataModule(config).order.locate(np.arange(16)).sample_ids
    assert first["sample_ids"] == ids.tolist()
    assert first["samples_digest"] == hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:16]
    assert first["weights"] == digests(ClipModule(config).model.state_dict())
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "RankMe" in html
    assert '<p class="lead">finished, 128 of 128 samples' in html


@pytest.mark.ci
def test_two_ranks_record_what_one_process_does(runner: Runner, tmp_path: Path) -> None:
    runner.train(tmp_path / "one", *HEALTH)
    runner.train(tmp_path / "two", *HEALTH, "cluster=ddp", "cluster.devices=2", ranks=2)
    one, two = ((tmp_path / name / "latest").resolve() for name in ("one", "two"))
    assert (one / "first_step.json").read_text() == (two / "first_step.json").read_text()
    expected = health_of(one)
    assert health_of(two) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert len(expected) == 2 * len(NAMES)


def test_digests_differ_where_one_bit_of_a_weight_does() -> None:
    weights = {"a": torch.zeros(3, 2), "b": torch.ones((), dtype=torch.bfloat16), "c": torch.arange(3)}
    before = digests(weights)
    changed = {**weights, "a": torch.zeros(3, 2)}
    changed["a"][1, 1] = -0.0
    after = digests(changed)
    assert [name for name in weights if before[name] != after[name]] == ["a"]
    assert before["b"].endswith("[]")
    layout = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert digests({"x": layout}) == digests({"x": layout.contiguous(memory_format=torch.channels_last)})


def test_a_report_that_fails_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "r")
    write_report(run)
    assert (run / "report.html").exists()
    monkeypatch.setattr(page, "sections", lambda runs: 1 / 0)
    write_report(run)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {run / 'report.html'} was not written (division by zero)")
