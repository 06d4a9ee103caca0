"""Paired differences of two models: tests and intervals against their definitions, and the command."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.compare.__main__ import main
from clip_lightning.evaluation.compare.paired import (
    COLUMNS,
    differences,
    disagreements,
    mcnemar,
    pair,
    read_predictions,
)
from clip_lightning.evaluation.intervals import paired_difference, student_interval


def predictions(correct: np.ndarray, task: str = "shape", seed: int = 0) -> pd.DataFrame:
    """Predictions of four classes that are correct where they should be."""
    labels = np.random.default_rng(seed).integers(0, 4, len(correct))
    rows = {
        "task": task, "split": "test", "prompts": "own", "index": np.arange(len(correct)), "key": "", "label": labels,
        "predicted": np.where(correct >= 0.5, labels, (labels + 1) % 4), "correct": correct.astype(float),
        "probability": 0.5,
    }  # fmt: skip
    return pd.DataFrame(rows)[COLUMNS]


def two(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    first = generator.random(n) < 0.6
    return first.astype(float), np.where(generator.random(n) < 0.8, first, generator.random(n) < 0.8).astype(float)


def test_mcnemar_is_the_exact_binomial_test_of_discordant_images() -> None:
    # Of 9 and 1 discordant images: 2 * (1 + 10) / 2^10.
    assert mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar(1, 9) == mcnemar(9, 1)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1


def test_the_interval_of_a_paired_difference_is_newcombes() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 2635-2650, Table II, method 10: the cells 36, 12, 2, 0 of n = 50.
    low, high = paired_difference(only_first=2, only_second=12, both=36, n=50)
    assert (low, high) == (pytest.approx(0.0569, abs=1e-4), pytest.approx(0.3404, abs=1e-4))
    low, high = paired_difference(only_first=12, only_second=2, both=36, n=50)
    assert (-high, -low) == (pytest.approx(0.0569, abs=1e-4), pytest.approx(0.3404, abs=1e-4))


def test_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    cells = generator.multinomial(200, [0.5, 0.2, 0.1, 0.2], size=400)
    ends = [paired_difference(b, c, a, 200) for a, c, b, _ in cells.tolist()]
    assert np.mean([low <= 0.1 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.03)
    values = generator.normal(0.5, 0.05, (400, 5))
    assert np.mean([low <= 0.5 <= high for low, high in map(student_interval, values)]) == pytest.approx(0.95, abs=0.03)


def test_differences_are_measured_image_by_image() -> None:
    first, second = two()
    accuracy, per_class = differences(pair(predictions(first), predictions(second)))
    assert (accuracy.first, accuracy.second) == (first.mean(), second.mean())
    assert accuracy.difference == pytest.approx(second.mean() - first.mean())
    assert (accuracy.only_first, accuracy.only_second) == (((first == 1) & (second == 0)).sum(), (second > first).sum())
    assert accuracy.p == mcnemar(accuracy.only_first, accuracy.only_second)
    labels = predictions(first).label
    recalls = [second[labels == k].mean() - first[labels == k].mean() for k in range(4)]
    assert per_class.difference == pytest.approx(np.mean(recalls))
    assert per_class.low < per_class.difference < per_class.high
    # Both are intervals of nearly the same quantity.
    assert (accuracy.low, accuracy.high) == pytest.approx((per_class.low, per_class.high), abs=0.02)


def test_shares_of_hits_are_bootstrapped() -> None:
    first, second = two()
    second[:3] = 0.5
    accuracy, _ = differences(pair(predictions(first), predictions(second)))
    assert accuracy.p is None
    assert accuracy.method == "bootstrap over images"
    assert accuracy.low < accuracy.difference < accuracy.high


def test_tasks_are_averaged() -> None:
    tasks = [two(300, seed) for seed in (1, 2, 3)]
    frames = [pd.concat([predictions(pairs[side], f"task{k}") for k, pairs in enumerate(tasks)]) for side in (0, 1)]
    *found, mean = differences(pair(*frames))
    accuracy = [one for one in found if one.metric == "acc1"]
    assert mean.task == "mean of 3 tasks"
    assert mean.difference == pytest.approx(np.mean([one.difference for one in accuracy]))
    assert mean.high - mean.low < np.mean([one.high - one.low for one in accuracy])


def test_disagreements_are_drawn_from_both_sides() -> None:
    first, second = two()
    both = pair(predictions(first), predictions(second))
    shown = disagreements(both, 10)
    assert (shown.correct_first > shown.correct_second).sum() == 5
    assert len(disagreements(both, 10_000)) == (first != second).sum()


def test_predictions_of_other_images_are_refused(tmp_path: Path) -> None:
    first, second = two()
    frame = predictions(first)
    with pytest.raises(UserError, match=r"no image in common: the first has shape \(own\), the second color \(own\)"):
        pair(frame, predictions(second, "color"))
    with pytest.raises(UserError, match="its label is"):
        pair(frame, predictions(second, seed=1))
    with pytest.raises(UserError, match="image 0: its image is  in the first and a in the second"):
        pair(frame, predictions(second).assign(key="a"))
    with pytest.raises(UserError, match=r"has no predictions.parquet; make it"):
        read_predictions(tmp_path)
    frame.drop(columns="probability").to_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(DataError, match="has no column probability"):
        read_predictions(tmp_path)


@pytest.mark.slow
def test_the_command_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from clip_lightning.evaluation.tasks import build_task

    task = build_task("shape")
    for name, correct in zip(("old", "new"), two(60), strict=True):
        (tmp_path / name).mkdir()
        frame = predictions(correct).assign(label=task.labels[:60])
        frame["predicted"] = np.where(correct >= 0.5, frame.label, (frame.label + 1) % len(task.classnames))
        absent = frame.assign(task="elsewhere")
        pd.concat([frame, absent]).to_parquet(tmp_path / name / "predictions.parquet")
    words = [str(tmp_path / "old"), str(tmp_path / "new"), "--out", str(tmp_path / "out"), "--images", "9"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "mean of 2 tasks" in printed
    assert "without the images of elsewhere" in printed
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["metric"] for row in written["rows"]] == ["acc1", "mean_per_class"] * 2 + ["acc1"]
    assert (tmp_path / "out" / "disagreements.png").read_bytes()[:4] == b"\x89PNG"
    apart = pd.read_parquet(tmp_path / "out" / "disagreements.parquet")
    assert len(apart) == 2 * (written["rows"][0]["only_first"] + written["rows"][0]["only_second"])
    assert main([*words, "--tasks", "shape", "--images", "0"]) == 0
    assert "picture" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--task other: .* has no such predictions; it has shape, elsewhere"):
        main([*words, "--tasks", "other"])
