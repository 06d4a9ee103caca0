"""Tasks of images and captions by name in `eval.tasks`, from their files to the table of scores."""

from pathlib import Path
from typing import Any

import pytest
import torch

from clip_lightning.config.schema import EvalConfig, VisionConfig
from clip_lightning.data.images.decode import Resize
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.measure import measure
from clip_lightning.evaluation.pair_tasks import is_pair_task
from clip_lightning.run.console.summary import note_lines, score_table
from clip_lightning.run.evaluators import find_tasks, task_evaluators
from tests.support.small_data import jpeg, write_tar


def write_sets(root: Path) -> None:
    """Flickr30k of four images in CLIP_benchmark's tars, and one subset of SugarCrepe with one damaged image."""
    members = [(f"{k}.jpg", jpeg(k)) for k in range(4)] + [(f"{k}.txt", f"one {k}\ntwo {k}".encode()) for k in range(4)]
    write_tar(root / "flickr30k" / "test" / "0.tar", sorted(members))
    (root / "flickr30k" / "test" / "nshards.txt").write_text("1\n")
    (root / "sugar_crepe").mkdir()
    (root / "val2017").mkdir()
    rows = [f'"{k}": {{"filename": "{k}.jpg", "caption": "a {k}", "negative_caption": "b {k}"}}' for k in range(3)]
    (root / "sugar_crepe" / "swap_obj.json").write_text("{" + ", ".join(rows) + "}")
    for k in range(3):
        (root / "val2017" / f"{k}.jpg").write_bytes(jpeg(k)[: 40 if k == 1 else None])


def test_names_in_eval_tasks_are_measured_and_shown(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    write_sets(tmp_path)
    names = ["shape", "flickr30k", "sugar_crepe/swap_obj"]
    found = find_tasks(EvalConfig(name="own", tasks=names, root=str(tmp_path)))
    assert [task.name for task in (*found.zero_shot, *found.pairs)] == names
    vision = VisionConfig(name="small", timm="none", image_size=16, resize="squash")
    lines: list[str] = []
    evaluators = task_evaluators(found, EvalConfig(name="own"), vision, "fp32", lines.append, MemoryBudget())
    assert evaluators[1].task.resize == Resize("squash")
    records = measure(evaluators[1:], model, tokenizer, torch.device("cpu"), lines.append)
    assert lines == []
    flickr, sugar = score_table(records).splitlines()[::-1]
    assert "recall@1" in flickr
    assert "(n=4)" in flickr
    assert "caption_accuracy" in sugar
    assert "(n=2, chance 50.0%)" in sugar
    notes = note_lines(records)
    assert "flickr30k: 4 images were evaluated, and the set is known to have 1,000." in notes
    assert any("1 of 3 images could not be read and are not counted" in line for line in notes)
    assert {record.transform for record in records} == {"16 squash bicubic"}
    assert all(record.weights_hash and record.seconds is not None for record in records)


def test_what_is_a_task_of_pairs(tmp_path: Path) -> None:
    names = [
        "flickr30k",
        "mscoco_captions",
        "xm3600_de",
        "winoground",
        "sugar_crepe",
        "sugar_crepe/add_att",
        str(tmp_path),
    ]
    assert all(is_pair_task(name) for name in names)
    assert not any(is_pair_task(name) for name in ("imagenet", "cifar10", "sugar_crepe/none", "coconut"))


def test_named_sets_that_are_missing_stop_and_those_of_a_suite_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"flickr30k is not below eval\.root"):
        find_tasks(EvalConfig(name="own", tasks=["flickr30k"], root=str(tmp_path)))
    with pytest.raises(DataError, match=r"eval\.root is not set, and winoground is read from there"):
        find_tasks(EvalConfig(name="own", tasks=["winoground"]))
    write_sets(tmp_path)
    found = find_tasks(EvalConfig(name="retrieval", tasks=[], suites={"retrieval": True}, root=str(tmp_path)))
    assert [task.name for task in found.pairs] == ["flickr30k"]
    assert list(found.missing) == ["coco"]
    with pytest.raises(UserError, match="unknown task 'flicker'"):
        find_tasks(EvalConfig(name="own", tasks=["flicker"], root=str(tmp_path)))
