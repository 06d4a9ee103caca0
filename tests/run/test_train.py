"""train.py and evaluate.py as a user meets them: what they print, leave behind, and refuse."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clip_lightning.records import read_records
from tests.support.small_folder import write_folder

pytestmark = pytest.mark.slow

TASKS = [
    "eval=default",
    "eval.tasks=[shape,unseen_combination]",
    "eval.every=4 steps",
    "data.validation.num_samples=64",
]


@pytest.fixture(scope="module")
def finished(runner: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    runs = tmp_path_factory.mktemp("finished")
    return runs, runner.train(runs, *TASKS, "compute.ema_decay=0.8")


def test_a_run_prints_its_banner_lines_scores_and_table(finished: tuple[Path, str]) -> None:
    lines = finished[1].splitlines()
    assert re.match(r"clip_lightning \d+\.\d+\.\d+  .*run tiny-scenes-cpu_minutes-[0-9a-f]{8}$", lines[0])
    assert [line.split(" ")[0] for line in lines[1:5]] == ["state", "science", "hardware", "changed"]
    assert lines[1].split() == ["state", "new"]
    assert "128 samples = " in lines[2]
    assert re.search(r"compute\.global_batch \d+ -> 16 \(command line\)", finished[1])
    assert sum(line.startswith("sample ") for line in lines) == 8
    assert sum(line.startswith("eval @64  ") for line in lines) == 6
    assert re.search(r"^status +finished$", finished[1], re.MULTILINE)


def test_a_run_writes_its_records_summary_and_figures(finished: tuple[Path, str]) -> None:
    run = finished[0] / "latest"
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["zeroshot"]) == {"shape", "unseen_combination"}
    assert set(summary["zeroshot"]["shape"]) >= {"acc1", "acc5", "mean_per_class", "chance", "n"}
    assert summary["parameters"] > 100_000
    assert (summary["samples"], summary["status"]) == (128, "finished")
    assert read_records(run / "records.parquet") == read_records(run / "metrics.jsonl")
    measured = {record.what for record in read_records(run / "metrics.jsonl") if not record.task}
    assert measured >= {"loss", "gradient_norm", "learning_rate", "logit_scale", "samples_per_second", "data_wait"}
    assert measured >= {"flops_per_second", "memory_gib", "cut_captions", "bad_samples", "seconds"}
    names = {"loss.png", "zero_shot.png", "predictions.png", "retrieval.png"}
    assert {path.name for path in (run / "figures").iterdir()} == names


def test_the_same_command_reports_a_finished_run(runner: Any, finished: tuple[Path, str]) -> None:
    printed = runner.train(finished[0], *TASKS, "compute.ema_decay=0.8")
    assert "is finished; fresh=true starts it over" in printed
    assert (finished[0] / "latest" / "summary.txt").read_text() in printed
    assert len((finished[0] / "latest" / "starts.jsonl").read_text().splitlines()) == 1


def test_evaluate_gives_the_numbers_of_the_end_of_training(runner: Any, finished: tuple[Path, str]) -> None:
    for weights in ("raw", "ema"):
        child = runner.start("evaluate.py", f"run={finished[0] / 'latest'}", f"weights={weights}")
        assert child.wait() == 0, child.text()

    def scores(name: str) -> dict[tuple[str, str, str], float]:
        found = read_records(finished[0] / "latest" / name)
        return {(r.task, r.what, r.weights): r.value for r in found if r.task and r.samples_seen == 128}

    assert scores("evaluation.jsonl") == scores("metrics.jsonl")
    assert scores("evaluation.parquet") == scores("metrics.jsonl")
    assert "shape (ema)" in child.text()


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.ci)])
def test_evaluate_on_several_processes_gives_the_records_of_one(
    runner: Any, finished: tuple[Path, str], devices: int
) -> None:
    file = finished[0] / "latest" / "evaluation.jsonl"
    found = []
    for settings in ([], ["cluster=ddp", f"cluster.devices={devices}", "cluster.accelerator=cpu"]):
        before = len(read_records(file)) if file.exists() else 0
        child = runner.start("evaluate.py", f"run={finished[0] / 'latest'}", *settings)
        assert child.wait() == 0, child.text()
        assert child.text().count("top-1") == 2, child.text()
        found.append([replace(record, seconds=None) for record in read_records(file)[before:]])
    alone, several = found
    assert len(alone) == len(several) == 2 * 4 + 8
    for one, other in zip(alone, several, strict=True):
        if one.what.startswith("val_loss"):
            assert other.value == pytest.approx(one.value, rel=1e-6)
        else:
            assert other == one


@pytest.mark.ci
def test_evaluate_under_torchrun(runner: Any, finished: tuple[Path, str], root: Path) -> None:
    run, file = finished[0] / "latest", finished[0] / "latest" / "evaluation.jsonl"
    assert runner.start("evaluate.py", f"run={run}").wait() == 0
    alone = [replace(record, seconds=None) for record in read_records(file) if record.what == "acc1"][-2:]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    settings = [f"run={run}", "cluster=ddp", "cluster.devices=2", "cluster.accelerator=cpu"]
    done = subprocess.run([*launch, "evaluate.py", *settings], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [replace(record, seconds=None) for record in read_records(file) if record.what == "acc1"][-2:]
    assert found == alone
    assert done.stdout.count("top-1") == 2


def test_evaluate_takes_the_runs_own_folders_unless_others_are_named(runner: Any, tmp_path: Path) -> None:
    own, other = write_folder(tmp_path / "own"), write_folder(tmp_path / "other")
    runner.train(tmp_path, "eval=default", "eval.tasks=[]", f"eval.folders=[{own}]", "compute.duration=2 steps")
    for settings, shown in (([], "own"), ([f"eval.folders=[{other}]"], "other")):
        child = runner.start("evaluate.py", f"run={tmp_path / 'latest'}", *settings)
        assert child.wait() == 0, child.text()
        assert [line.split()[0] for line in child.text().splitlines() if "top-1" in line] == [shown]


def test_evaluate_measures_other_tasks_of_any_checkpoint(runner: Any, finished: tuple[Path, str]) -> None:
    run = finished[0] / "latest"
    child = runner.start("evaluate.py", f"run={run}", "eval.tasks=[color]", "checkpoint=000000000096")
    assert child.wait() == 0, child.text()
    assert "after 96 samples" in child.text()
    assert "color" in child.text()
    assert "shape" not in child.text()


def test_evaluate_refuses_what_it_cannot_trust_or_read(runner: Any, finished: tuple[Path, str], tmp_path: Path) -> None:
    run = finished[0] / "latest"
    config = (run / "config.yaml").read_text()
    assert "_target_: null" in config
    (tmp_path / "config.yaml").write_text(config.replace("_target_: null", "_target_: os.getcwd", 1))
    cases = [
        ([f"run={tmp_path}"], "allow_target=[os.getcwd]", 2),
        ([f"run={tmp_path / 'nowhere'}"], "is not a run's directory", 2),
        ([f"run={run}", f"checkpoint={tmp_path}"], "is not a checkpoint", 1),
        ([f"run={run}", "eval.tasks=[]"], "nothing to evaluate", 2),
        ([f"run={run}", "eval.tasks=[shapes]"], "did you mean shape", 2),
    ]
    for argv, sentence, code in cases:
        child = runner.start("evaluate.py", *argv)
        assert (child.wait(), sentence in child.text()) == (code, True), child.text()
        assert "Traceback" not in child.text()


@pytest.mark.ci
def test_fresh_starts_over_and_keeps_the_earlier_run(runner: Any, tmp_path: Path) -> None:
    short = "compute.duration=2 steps"
    runner.train(tmp_path, short)
    (first,) = (path for path in tmp_path.iterdir() if path.name != "latest")
    seconds = json.loads((first / "summary.json").read_text())["seconds"]
    assert "state    new" in runner.train(tmp_path, short, "fresh=true")
    old = first.with_name(first.name + ".old-1")
    assert json.loads((old / "summary.json").read_text())["seconds"] == seconds
    assert (tmp_path / "latest").resolve() == first.resolve()


def test_what_is_wrong_before_the_first_step_is_reported_at_once(runner: Any, tmp_path: Path) -> None:
    bad = ["model.vision.timm=resnet5o", "eval.tasks=[nope,shape]", "logger=wandb", "logger.wandb.mode=online"]
    without_login = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_MODE": "", "WANDB_API_KEY": ""}
    child = runner.start("train.py", f"runs={tmp_path / 'runs'}", *bad, env=without_login)
    assert child.wait() == 2, child.text()
    headline, *lines = child.text().splitlines()
    assert headline.startswith("clip_lightning ")
    assert [next(k for k, line in enumerate(lines) if words in line) for words in ("nope", "resnet5o", "W&B")] == [
        0,
        1,
        2,
    ]
    assert len(lines) == 3
    assert not (tmp_path / "runs").exists()


def test_an_unexpected_error_keeps_its_traceback_and_sample_ids(runner: Any, tmp_path: Path) -> None:
    (tmp_path / "broken_loss.py").write_text(
        "import torch\n"
        "class Broken(torch.nn.Module):\n"
        "    def __init__(self, **settings):\n"
        "        super().__init__()\n"
        "    def forward(self, image, text, logit_scale, logit_bias):\n"
        "        raise ZeroDivisionError('no such luck')\n"
    )
    child = runner.start(
        "train.py", f"runs={tmp_path / 'runs'}", "compute.duration=2 steps", "compute.global_batch=16", "eval=none",
        "logger=none", "data.validation.num_samples=0", "cluster.workers=0", "loss._target_=broken_loss.Broken",
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert child.wait() == 1
    run = tmp_path / "runs" / "latest"
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "failed"
    assert "ZeroDivisionError on rank 0: no such luck" in status["reason"]
    failure = (run / "failure.txt").read_text()
    assert "Traceback" in failure
    assert re.search(r"rank 0, 0 samples seen, sample ids \[\d+, \d+", failure)


def test_a_student_learns_from_a_finished_run(runner: Any, finished: tuple[Path, str], tmp_path: Path) -> None:
    teacher = (finished[0] / "latest").resolve()
    student = ["loss=distill", f"loss.teacher={teacher}", "model.embed_dim=64", "cluster.micro_batch=8"]
    runner.train(tmp_path, *student)
    run = tmp_path / "latest"
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    assert (run / "tokenizer" / "tokenizer.json").read_text() == (teacher / "tokenizer" / "tokenizer.json").read_text()
    assert f"teacher_science: {teacher.name[-8:]}" in (run / "config.yaml").read_text()
