"""Records for figures: the probe's search, the sources of labels, and a run that gets all of them."""

import json
from pathlib import Path

import pytest

from clip_lightning.errors import UserError
from clip_lightning.evaluation.tasks import build_task
from clip_lightning.records import read_records
from experiments.figures import measure
from tests.support.commands import exit_code
from tests.support.runner import Runner


def test_labels_are_those_of_the_training_scenes() -> None:
    labelled = measure.labelled_images(build_task("shape_sketch"), [], 12)
    assert len(labelled.labels) == 12
    assert tuple(labelled.image(3, 32).shape) == (3, 32, 32)
    with pytest.raises(UserError, match="handwritten_digits has no labelled images to train on"):
        measure.labelled_images(build_task("handwritten_digits"), [], 12)


def test_nothing_to_measure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is nothing to measure"):
        measure.main([str(tmp_path)])
    with pytest.raises(UserError, match="must be at least 1, not 0"):
        measure.main([str(tmp_path), "--shots", "0"])
    with pytest.raises(UserError, match="it has no config"):
        measure.main([str(tmp_path), "--probe"])


@pytest.mark.ci
def test_a_real_run_gets_every_record_and_its_figures(
    runner: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed_by(module: str, *words: object) -> str:
        capsys.readouterr()
        assert exit_code(module, list(map(str, words))) == 0
        return capsys.readouterr().out

    short = ["compute.duration=40 steps", "compute.global_batch=32", "data.validation.num_samples=32"]
    runner.train(tmp_path, *short, "eval.tasks=[shape]")
    trained = (tmp_path / "latest").resolve()
    tasks = ["--tasks", "shape", "shape_sketch"]
    shots = ["--shots", 1, 2, 4]
    printed_by(
        "experiments.figures.measure", trained, "--probe", *shots, "--prompts", "--supervised", *tasks, "--images", 120
    )
    found = {(record.what, record.task) for record in read_records(trained / "evaluation.jsonl")}
    for what in ("acc1", "linear_probe_acc1", "few_shot_1_acc1", "few_shot_4_acc1", "supervised_acc1"):
        assert {(what, "shape"), (what, "shape_sketch")} <= found
    probed = [trained, "--train", "shape", "--test", "shape", "--scenes", 200, "--shots", 1, 2, "--seeds", 2]
    printed = printed_by("clip_lightning.run.probe", *probed, "--features", tmp_path / "features")
    assert "few_shot_2_acc1" in printed
    lines = [json.loads(line) for line in (trained / "probes.jsonl").read_text().splitlines()]
    assert [(line["shots"], line["num_rows"]) for line in lines] == [
        (None, 200), (1, 8), (1, 8), (2, 16), (2, 16),
    ]  # fmt: skip
    matched = [r for r in read_records(trained / "evaluation.jsonl") if r.what == "shots_to_match_zero_shot"]
    assert (matched[0].task, len(list((tmp_path / "features").iterdir()))) == ("shape", 2)
    child = runner.start("evaluate.py", f"run={trained}", "eval.keep_predictions=true", "eval.tasks=[shape]")
    assert child.wait() == 0, child.text()
    compared = printed_by("clip_lightning.evaluation.compare", trained, trained, "--out", tmp_path / "compared")
    assert "+0.00 [" in compared
    assert "they disagree on 0 of" in compared
    for module in ("fig06_fewshot", "fig05_probe", "fig14_adaptation"):
        words = [trained, *tasks[:2], "--prompts", "scenes", "--out", tmp_path / "out"]
        assert f"{module}.png" in printed_by(f"experiments.figures.{module}", *words)
