"""What W&B has of a run that was stopped and resumed, from its files offline."""

import json
from pathlib import Path
from typing import Any

import pytest

from clip_lightning.records import metric_name, read_records
from tests.support.wandb_files import wandb_records

pytestmark = pytest.mark.slow


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows that were logged."""
    found = [stored.history for stored in wandb_records(file) if stored.HasField("history")]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in found]


@pytest.mark.ci
def test_a_resumed_run_is_one_curve_and_ends_with_table_figures_report_and_model(
    runner: Any, tmp_path: Path, small: list[str]
) -> None:
    argv = [f"runs={tmp_path}", *small, "eval=default", "eval.tasks=[shape]", "eval.every=4 steps"]
    argv += ["logger=wandb", "logger.wandb.mode=offline", "logger.wandb.log_model=true"]
    child = runner.start("train.py", *argv, env={"WANDB_RUN_GROUP": "some-sweep"})
    child.wait_for("sample 96/")
    child.kill(15)
    again = runner.start("train.py", *argv, env={"WANDB_RUN_GROUP": "some-sweep"})
    assert again.wait() == 0, again.text()
    assert "W&B shows no more" not in again.text()

    run = (tmp_path / "latest").resolve()
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2
    stored = [one.run for file in files for one in wandb_records(file) if one.HasField("run")]
    own = (run / "wandb_id.txt").read_text().strip()
    assert {(one.run_id, one.run_group) for one in stored} == {(own, "some-sweep")}

    logged = [rows_of(file) for file in files]
    steps = [[row["samples_seen"] for row in rows if "train/loss" in row] for rows in logged]
    assert steps[0][0] == 16
    assert steps[1][-1] == 128
    # The second start continues at the checkpoint, which is where the first ended.
    assert steps[1][0] == steps[0][-1] + 16
    records = read_records(run / "metrics.jsonl")
    series = {(row["samples_seen"], name): value for rows in logged for row in rows for name, value in row.items()}
    for record in records:
        assert series[record.samples_seen, metric_name(record)] == pytest.approx(record.value, nan_ok=True)

    end = logged[1][-1]
    assert end["samples_seen"] == 128
    shown = ("scores", "report", "figures/loss", "figures/zero_shot", "figures/predictions")
    assert {f"{name}.path" for name in shown} <= end.keys()
    media = files[1].parent / "files"
    table = json.loads((media / end["scores.path"]).read_text())
    (accuracy,) = [row for row in table["data"] if row[:2] == ["shape", "acc1"]]
    (newest,) = [one for one in records if one.what == "acc1" and one.samples_seen == 128]
    assert accuracy[3:8] == pytest.approx([newest.value, newest.low, newest.high, newest.n, newest.chance])
    assert (media / end["report.path"]).read_text().count("<h1>") == 1
    assert (media / end["figures/loss.path"]).read_bytes()[1:4] == b"PNG"

    summary = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for one in wandb_records(files[1])
        if one.HasField("summary")
        for item in one.summary.update
    }
    assert summary["end/status"] == "finished"
    assert summary["end/restarts"] == 1
    requests = [one.request.log_artifact for one in wandb_records(files[1]) if one.HasField("request")]
    artifacts = [one.artifact for one in wandb_records(files[1]) if one.HasField("artifact")]
    artifacts += [one.artifact for one in requests if one.artifact.name]
    (model,) = [one for one in artifacts if one.type == "model"]
    assert model.name == f"model-{own}"
    assert "weights.pt" in {entry.path for entry in model.manifest.contents}
