"""Numbers of an evaluation during training are those of evaluate.py on the checkpoint saved there, to the image."""

import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clip_lightning.records import Record, read_records
from tests.support.small_folder import write_folder, write_tar

pytestmark = pytest.mark.slow
EVERY = ["eval.every=4 steps", "cluster.checkpoint_every=4 steps", "cluster.keep_every=4 steps"]


def accuracies(file: Path) -> list[Record]:
    """Those of zero-shot tasks."""
    return [record for record in read_records(file) if record.what in ("acc1", "acc5", "mean_per_class")]


def same_numbers(found: Sequence[Record], expected: Sequence[Record]) -> None:
    """Counts, intervals, and the weights that were measured."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        for name in ("what", "task", "samples_seen", "value", "low", "high", "n", "per_class", "weights_hash"):
            assert getattr(one, name) == getattr(other, name), name


@pytest.mark.ci
def test_every_evaluation_is_repeated_by_evaluate_py(runner: Any, tmp_path: Path) -> None:
    settings = [*EVERY, "eval=default", "eval.tasks=[shape,color]", "eval.keep_predictions=true"]
    runner.train(tmp_path, *settings, "compute.ema_decay=0.9")
    run = tmp_path / "latest"
    trained = [record for record in accuracies(run / "metrics.jsonl") if not record.weights]
    assert sorted({record.samples_seen for record in trained}) == [64, 128]
    kept = pq.read_table(run / "predictions.parquet").to_pylist()
    last = {record.task: record for record in trained if record.what == "acc1" and record.samples_seen == 128}
    for task, record in last.items():
        rows = [row for row in kept if row["task"] == task]
        assert len(rows) == record.n
        assert sum(row["correct"] for row in rows) / len(rows) == pytest.approx(record.value)
    summary = json.loads((run / "summary.json").read_text())
    assert 0 < summary["evaluation_share"] < 1
    for name in ("000000000064", "000000000128"):
        child = runner.start("evaluate.py", f"run={run}", f"checkpoint={name}", "eval.keep_predictions=true")
        assert child.wait() == 0, child.text()
    same_numbers(accuracies(run / "evaluation.jsonl"), trained)
    assert pq.read_table(run / "predictions.parquet").to_pylist() == kept


def test_missing_and_damaged_data_sets_do_not_stop_a_run(runner: Any, tmp_path: Path) -> None:
    root = tmp_path / "sets"
    write_folder(root / "cifar10")
    write_tar(root / "cifar10" / "test" / "1.tar", {"9.png": b"?", "9.cls": b"1"})
    text = runner.train(tmp_path, "eval=[quick,imagenet_shifts]", f"eval.root={root}", "compute.duration=4 steps")
    (line,) = [line for line in text.splitlines() if "data sets of the suite are not measured, and 1 tasks are" in line]
    assert "cifar100, dtd, oxford_pets, imagenet_v2, imagenet_a" in line
    assert text.index("not measured") < text.index("sample 16/")
    assert "1 of 4 images could not be read and are not counted; the first is image 3 (not an image" in text
    records = [r for r in read_records(tmp_path / "latest" / "metrics.jsonl") if r.what == "acc1"]
    assert {(record.task, record.n) for record in records} == {("cifar10", 3)}
    text = runner.train(tmp_path, "eval=vtab", f"eval.root={tmp_path}", code=2)
    assert "eval=vtab: none of its data sets is here" in text


def first_photographs(folder: Path, num: int) -> Path:
    """The first images of the real test set, in its layout."""
    target = folder.parent / f"first_{num}"
    (target / "test").mkdir(parents=True)
    for name in ("classnames.txt", "zeroshot_classification_templates.txt", "test/nshards.txt"):
        shutil.copy(folder / name, target / name)
    with tarfile.open(folder / "test" / "0.tar") as whole, tarfile.open(target / "test" / "0.tar", "w") as part:
        for _ in range(2 * num):  # an image and its label
            member = whole.next()
            assert member is not None
            part.addfile(member, whole.extractfile(member))
    return target


@pytest.mark.ci
def test_photographs_have_one_count_on_any_number_of_ranks(runner: Any, tmp_path: Path, photographs: Path) -> None:
    """One process and shards on 3 ranks, an uneven last batch: 1,501 images in batches of 94."""
    source = tmp_path / "cifar10" / "wds_cifar10"
    source.parent.mkdir()
    source.symlink_to(photographs / "wds_cifar10")
    test_set = [f"eval.folders=[{first_photographs(source, 1501)}]"]
    captions = ["experiment=cifar10_cpu", f"data.path={photographs / 'captions'}", f"data.index_folder={tmp_path}"]
    settings = [*captions, *EVERY, *test_set, "eval=default", "compute.global_batch=24", "compute.warmup=0 steps"]
    trained: dict[str, list[Record]] = {}
    shards = ["cluster=fsdp", "cluster.devices=3", "cluster.accelerator=cpu"]
    for name, cluster, number in (("one", [], 1), ("fsdp3", shards, 3)):
        runner.train(tmp_path / name, *settings, *cluster, ranks=number)
        trained[name] = accuracies(tmp_path / name / "latest" / "metrics.jsonl")
        assert {(record.samples_seen, record.n) for record in trained[name]} == {(96, 1501), (192, 1501)}
    for name, samples, devices in (("one", 96, 2), ("fsdp3", 96, 1), ("fsdp3", 192, 3)):
        run = tmp_path / name / "latest"
        before = len(accuracies(run / "evaluation.jsonl")) if (run / "evaluation.jsonl").exists() else 0
        cluster = ["cluster=ddp", f"cluster.devices={devices}"] if devices > 1 else []
        asked = [f"run={run}", f"checkpoint={samples:012d}", "cluster.accelerator=cpu", *cluster]
        child = runner.start("evaluate.py", *asked, ranks=devices)
        assert child.wait() == 0, child.text()
        expected = [record for record in trained[name] if record.samples_seen == samples]
        same_numbers(accuracies(run / "evaluation.jsonl")[before:], expected)
