"""Layouts that any data set may be in: CLIP_benchmark's tars, parquet of the hub, folders and lists of a person."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.suite import DATACOMP36, PAPER36, SUITES, TABLE11_ONLY
from clip_lightning.evaluation.suite.entry import entry_names, load_entry
from clip_lightning.evaluation.tasks import build_task, build_tasks, main
from tests.evaluation.suite.drawing import draw, drawn, write
from tests.evaluation.suite.evaluating import measured
from tests.support.small_folder import encoded, write_tar

DATACOMP_METRICS = {  # main_metric of DataComp's tasklist.yml; accuracy elsewhere
    "caltech101": "mean_per_class",
    "fgvc_aircraft": "mean_per_class",
    "flowers102": "mean_per_class",
    "oxford_pets": "mean_per_class",
    "iwildcam": "macro_f1",
    "fmow": "worst_group_acc1",
    "geode": "worst_group_acc1",
    "dollar_street": "worst_group_acc5",
    "winogavil": "jaccard",
}


def npy(values: Sequence[float]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


def write_wds(
    folder: Path, labels: Sequence[int], names: Sequence[str], metadata: Sequence[Sequence[float]] = ()
) -> None:
    """Two shards; with metadata, each sample has a .npy member beside its label."""
    half = len(labels) // 2
    for shard, samples in enumerate((range(half), range(half, len(labels)))):
        members = {}
        for k in samples:
            members[f"s{k:07d}.cls"] = str(labels[k]).encode()
            members[f"s{k:07d}.webp"] = encoded(k, "webp")
            if len(metadata):
                members[f"s{k:07d}.npy"] = npy(metadata[k])
        (folder / "test").mkdir(parents=True, exist_ok=True)
        write_tar(folder / "test" / f"{shard}.tar", members)
    write(folder / "test" / "nshards.txt", "2\n")
    write(folder / "classnames.txt", "\n".join(names) + "\n")
    write(folder / "zeroshot_classification_templates.txt", "a photo of a {c}.\n")


@pytest.mark.parametrize("name", [name for name in DATACOMP36 if name != "winogavil"])
def test_datacomps_sets_are_evaluated_from_their_tars(name: str, tmp_path: Path, model: Any, tokenizer: Any) -> None:
    entry = load_entry(name)
    folder = tmp_path / f"wds_{entry.wds['names'][0].replace('/', '-').removeprefix('fairness-')}_test"
    names = [f"class {k}" for k in range(entry.classes)]
    labels = [0, entry.classes - 1, 1, 0]
    write_wds(folder, labels, names, [[0.0, 2.0], [1.0, 2.0], [5.0, 2.0], [0.0, 1.0]])
    task = build_task(name, tmp_path)
    assert task.labels.tolist() == labels
    assert list(task.classnames) == names
    assert list(task.templates) == ["a photo of a {c}."]
    assert task.metric == DATACOMP_METRICS.get(name, "acc1")
    assert task.num_expected == entry.wds["images"]
    assert task.image(3, 8).shape == (3, 8, 8)
    if name in ("fmow", "geode", "dollar_street"):
        assert task.groups is not None
        assert task.groups.tolist() == [0, 1, -1 if name == "fmow" else 5, 0]
    else:
        assert task.groups is None
    record = measured(task, model, tokenizer)
    assert record is None or (0 <= record.value <= 1 and record.split == task.split)


def test_datacomp_has_38_tasks_and_shares_entries_with_the_paper() -> None:
    assert len(DATACOMP36) + len(SUITES["retrieval"]) == 38
    assert len(set(DATACOMP36)) == 36
    common = set(DATACOMP36) & {*PAPER36, *TABLE11_ONLY}
    assert len(common) == 26
    assert {name for tasks in SUITES.values() for name in tasks} - set(SUITES["retrieval"]) <= set(entry_names())


def test_several_labels_per_image_are_in_npy_members(tmp_path: Path) -> None:
    folder = tmp_path / "wds_voc2007_multilabel"
    write_wds(folder, [0, 0], ["dog", "person"], [[1, 0], [1, 1]])
    write(folder / "dataset_type.txt", "multilabel\n")
    task = build_task("voc2007", tmp_path)
    assert task.labels.dtype == bool
    assert task.labels.tolist() == [[True, False], [True, True]]
    assert task.metric == "map11"


def test_the_two_tasks_of_voc2007_are_not_confused(tmp_path: Path) -> None:
    write_wds(tmp_path / "voc2007", [0, 1], ["dog", "person"])  # CLIP_benchmark's name of the crops
    assert build_task("voc2007_crops", tmp_path).labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"PASCAL VOC 2007 .* is not in"):
        build_task("voc2007", tmp_path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_winogavil_has_a_class_per_cue_and_a_row_per_candidate(
    tmp_path: Path, suffix: str, model: Any, tokenizer: Any
) -> None:
    candidates = [f"c{k}" for k in range(10)]
    rows = [
        {"cue": "Apple", "candidates": candidates[:5], "associations": ["c0"]},  # too few candidates
        {"cue": "Horse", "candidates": candidates, "associations": ["c1", "c9"]},
        {"cue": "owl", "candidates": candidates, "associations": ["c0"]},
    ]
    for row in rows:
        row["candidate_images"] = [{"bytes": encoded(k), "path": ""} for k in range(len(row["candidates"]))]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / "winogavil" / f"winogavil-test{suffix}"
    path.parent.mkdir()
    if suffix == ".parquet":
        pq.write_table(table, path, row_group_size=1)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    task = build_task("winogavil", tmp_path)
    assert list(task.classnames) == ["A horse", "An owl"]
    assert task.groups is not None
    assert task.groups.tolist() == [0] * 10 + [1] * 10
    assert np.argwhere(task.labels).tolist() == [[1, 0], [9, 0], [10, 1]]
    assert abs(task.image(13, 6).float().mean() - 60) <= 3  # the fourth candidate of the second cue
    record = measured(task, model, tokenizer)
    assert record is None or 0 <= record.value <= 1


def parquet(path: Path, labels: Sequence[object], names: Sequence[str] = (), column: str = "label") -> None:
    images = [{"bytes": encoded(k), "path": f"{k}.png"} for k in range(len(labels))]
    table = pa.table({"image": images, column: labels})
    if names:
        features = {column: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)


def test_parquet_of_the_hub_names_its_classes(tmp_path: Path) -> None:
    base = tmp_path / "mteb" / "food101" / "data"
    parquet(base / "test-00000-of-00002.parquet", [1, 0, 1], ["baklava", "apple_pie"])
    parquet(base / "test-00001-of-00002.parquet", [0, 0], ["baklava", "apple_pie"])
    parquet(base / "train-00000-of-00001.parquet", [0], ["baklava", "apple_pie"])
    task = build_task("food101", tmp_path)
    assert [task.classnames[label] for label in task.labels] == [
        "apple pie",
        "baklava",
        "apple pie",
        "baklava",
        "baklava",
    ]
    assert (task.split, task.num_samples) == ("hub", 5)
    for k in (0, 4, 2, 3, 1):  # across groups of rows, back and forth
        assert abs(task.image(k, 6).float().mean() - 20 * (k if k < 3 else k - 3)) <= 3


def test_parquet_of_the_hubs_cache_with_texts_as_labels(tmp_path: Path) -> None:
    base = tmp_path / "datasets--mteb--dtd" / "snapshots" / "abc" / "data"
    parquet(base / "test-00000-of-00001.parquet", ["woven", "banded", "woven"])
    task = build_task("dtd", tmp_path)
    assert list(task.classnames) == ["banded", "woven"]
    assert task.labels.tolist() == [1, 0, 1]


def test_parquet_without_names_uses_the_sets_own_numbers(tmp_path: Path) -> None:
    parquet(tmp_path / "mteb--wds_gtsrb" / "test.parquet", [14, 0], column="cls")
    assert [build_task("gtsrb", tmp_path).classnames[k] for k in (14, 0)] == [
        "stop",
        "red and white circle 20 kph speed limit",
    ]
    parquet(tmp_path / "mteb--sun397" / "test.parquet", [3, 0], column="cls")
    with pytest.raises(DataError, match=r"sun397: class names needed; write one class name per line"):
        build_task("sun397", tmp_path)
    write(tmp_path / "sun397" / "classnames.txt", "a\nb\nc\nd\n")
    assert list(build_task("sun397", tmp_path).classnames) == ["a", "b", "c", "d"]


def test_a_person_may_write_a_list(tmp_path: Path) -> None:
    base = tmp_path / "sun723"
    write(base / "test.csv", "path,label\nx/1.jpg,abbey\nx/2.jpg,kennel_indoor\n")
    draw(base / "x" / "1.jpg", base / "x" / "2.jpg")
    task = build_task("sun723", tmp_path)
    assert [task.classnames[k] for k in task.labels] == ["abbey", "kennel indoor"]
    assert "never published" in task.stand_in


def test_a_folder_of_images_beside_an_official_layout_is_second_choice(tmp_path: Path) -> None:
    base = tmp_path / "rendered-sst2" / "test"
    draw(base / "positive" / "1.png", base / "negative" / "1.png")
    draw(tmp_path / "rendered_sst2" / "test" / "positive" / "1.png")
    assert build_task("rendered_sst2", tmp_path).num_samples == 2
    for path in base.rglob("*.png"):
        path.unlink()
    assert build_task("rendered_sst2", tmp_path).num_samples == 1  # the official folders are there, and empty


def test_all_sets_that_are_missing_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build_tasks(["mnist", "gtsrb"], root=tmp_path)
    assert [problem.split(" ")[0] for problem in caught.value.problems] == ["MNIST", "GTSRB"]


def test_tasks_of_the_same_images_share_their_identity(tmp_path: Path) -> None:
    draw(tmp_path / "country211" / "test" / "AD" / "1.jpg")
    first, second = build_task("country211", tmp_path), build_task("country211", tmp_path)
    assert first.images_id == second.images_id
    assert drawn("jpg") == first.read(0)


@pytest.mark.parametrize(
    "folder", ["clip-benchmark/wds_mnist", "datasets--clip-benchmark--wds_mnist/snapshots/abc", "mnist", "wds_mnist"]
)
def test_copies_of_the_hubs_tars_are_found(folder: str, tmp_path: Path) -> None:
    write_wds(tmp_path / folder, [0, 9], [f"digit {k}" for k in range(10)])
    assert build_task("mnist", tmp_path).labels.tolist() == [0, 9]


def test_a_person_adds_a_data_set_by_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path / "my_birds.yaml",
        "title: My birds\nclasses: 2\nmetric: mean_per_class\nget: take photographs\nlicence: mine\n"
        "names: [{keys: words}]\ntemplates: [{list: ['a bird, {c}.']}]\n"
        "sources: [{loader: folders, split: all, at: [birds], needs: [images], images_at: images, images: 3}]\n",
    )
    draw(tmp_path / "birds" / "images" / "blue_jay" / "1.jpg", tmp_path / "birds" / "images" / "robin" / "1.jpg")
    (task,) = build_tasks(["my_birds"], root=tmp_path)
    assert list(task.classnames) == ["blue jay", "robin"]
    assert (task.metric, task.num_expected, list(task.templates)) == ("mean_per_class", 3, ["a bird, {c}."])
    assert main(["--root", str(tmp_path), "my_birds"]) == 0
    printed = capsys.readouterr().out
    assert "my_birds: 2 of 3 images found; take photographs." in printed
    assert "  licence  mine" in printed
    write(tmp_path / "my_birds.yaml", "title: [")
    with pytest.raises(UserError, match=r"my_birds.yaml is not YAML"):
        build_task("my_birds", tmp_path)
