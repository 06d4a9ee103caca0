"""Retrieval tasks from files in the layouts that people have: lists, tars, parquet, any captioned data."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.caption_files import read_captions
from clip_lightning.evaluation.caption_retrieval import CaptionRetrievalEvaluator
from clip_lightning.evaluation.retrieval_tasks import build_retrieval, captioned, missing_sentence
from tests.support.small_data import jpeg, write_tar

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "evalsets" / "flickr30k_coco_karpathy"
NAMES = [f"{1000 + k}.jpg" for k in range(4)]
CAPTIONS = [[f"picture {k}, caption {j}" for j in range(5)] for k in range(4)]


def write_images(folder: Path, names: list[str] = NAMES) -> None:
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(k))


def karpathy(names: list[str] = NAMES, split: str = "test", **fields: Any) -> dict[str, Any]:
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": f"{text} "} for text in texts]} | fields
        for name, texts in zip(names, CAPTIONS, strict=True)
    ]
    images += [{"filename": "9.jpg", "split": "train", "sentences": [{"raw": "not of the test"}]} | fields]
    images += [{"filename": "8.jpg", "split": "restval", "sentences": [{"raw": "neither"}]} | fields]
    return {"images": images, "dataset": "flickr30k"}


def flickr_json(root: Path) -> None:
    write_images(root / "flickr30k" / "flickr30k-images")
    (root / "flickr30k" / "dataset_flickr30k.json").write_text(json.dumps(karpathy()))


def flickr_list(root: Path) -> None:
    write_images(root / "flickr30k")
    quoted = ['"{}"', "{}"]  # a caption with a comma may be in quotes, or not
    rows = [f"{name}," + quoted[j % 2].format(text) for name, texts in zip(NAMES, CAPTIONS, strict=True)
            for j, text in enumerate(texts)]  # fmt: skip
    (root / "flickr30k" / "flickr30k_test_karpathy.txt").write_text(
        "\ufeffimage,caption\r\n" + "\r\n".join(rows) + "\n"
    )


def flickr_tars(root: Path) -> None:
    folder = root / "wds_flickr30k" / "test"
    for shard in range(2):
        members = []
        for k in range(2 * shard, 2 * shard + 2):
            members += [(f"{k}.jpg", jpeg(k)), (f"{k}.txt", "\n".join(CAPTIONS[k]).encode())]
        write_tar(folder / f"{shard}.tar", members)
    (folder / "nshards.txt").write_text("2\n")


def flickr_parquet(root: Path) -> None:
    folder = root / "flickr30k" / "data"
    folder.mkdir(parents=True)
    images = [{"bytes": jpeg(k), "path": name} for k, name in enumerate(NAMES)]
    other = {"image": {"bytes": jpeg(9), "path": "9.jpg"}, "caption": ["of the training"], "split": "train"}
    rows = [{"image": image, "caption": texts, "split": "test"} for image, texts in zip(images, CAPTIONS, strict=True)]
    rows.insert(2, other)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet", row_group_size=2)


def coco_json(root: Path) -> None:
    names = [f"COCO_val2014_{k:012d}.jpg" for k in range(4)]
    write_images(root / "coco" / "val2014", names)
    (root / "coco" / "dataset_coco.json").write_text(json.dumps(karpathy(names, filepath="val2014")))


def coco_annotations(root: Path) -> None:
    names = [f"COCO_val2014_{k:012d}.jpg" for k in range(4)]
    write_images(root / "val2014", names)
    annotations = [{"image_id": 7 + k, "caption": text} for k in (2, 0, 3, 1) for text in CAPTIONS[k]]
    images = [{"id": 7 + k, "file_name": name} for k, name in enumerate(names)]
    (root / "coco_test_karpathy.json").write_text(json.dumps({"images": images, "annotations": annotations}))


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("flickr30k", flickr_json),
        ("flickr30k", flickr_list),
        ("flickr30k", flickr_tars),
        ("flickr30k", flickr_parquet),
        ("coco", coco_json),
        ("mscoco_captions", coco_annotations),
    ],
)
def test_every_layout_gives_the_same_images_and_all_captions(name: str, write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    task = build_retrieval(name, tmp_path)
    assert sorted(task.captions) == CAPTIONS
    assert task.num_expected == (1000 if name == "flickr30k" else 5000)
    assert task.name == name
    for texts, k in zip(task.captions, range(4), strict=True):
        number = CAPTIONS.index(list(texts))
        assert task.read(k) == jpeg(number)
        assert task.image(k, 16).shape == (3, 16, 16)


def test_a_task_from_files_is_measured(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    flickr_tars(tmp_path)
    records = CaptionRetrievalEvaluator(build_retrieval("flickr30k", tmp_path), 16).run(
        model, tokenizer, torch.device("cpu")
    )
    assert {record.n for record in records} == {4, 20}
    assert records[0].task == "flickr30k"
    assert records[0].what == "recall_at_1"


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official files are not beside this checkout")
def test_the_official_lists_are_read(tmp_path: Path) -> None:
    coco = tmp_path / "dataset_coco.json"
    coco.write_bytes((OFFICIAL / "dataset_coco.json.one_image").read_bytes())
    found = read_captions(coco)
    assert list(found) == ["val2014/COCO_val2014_000000391895.jpg"]
    assert (
        found["val2014/COCO_val2014_000000391895.jpg"][0] == "A man with a red helmet on a small moped on a dirt road."
    )
    assert len(found["val2014/COCO_val2014_000000391895.jpg"]) == 5
    flickr = tmp_path / "dataset_flickr30k.json"
    flickr.write_bytes((OFFICIAL / "dataset_flickr30k.json.one_image").read_bytes())
    assert list(read_captions(flickr, split="train")) == ["1000092795.jpg"]
    with pytest.raises(DataError, match="no caption of the split 'test'"):
        read_captions(flickr)


def test_other_languages_are_read_from_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "xm3600"
    write_images(folder / "images", ["a1.jpg", "b2.jpg"])
    rows = [
        {"image/key": "a1", "en": {"caption": ["a dog"]}, "de": {"caption": ["ein Hund", "ein brauner Hund"]}},
        {"image/key": "b2", "en": {"caption": ["a cat"]}, "de": {"caption": ["eine Katze"]}},
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert build_retrieval("xm3600_de", tmp_path).captions == [["ein Hund", "ein brauner Hund"], ["eine Katze"]]
    assert build_retrieval("crossmodal3600", tmp_path).captions == [["a dog"], ["a cat"]]
    with pytest.raises(DataError, match=r"no captions in 'sw'; it has en, de"):
        build_retrieval("xm3600-sw", tmp_path)
    lists = {"image_paths": ["/elsewhere/images/a1.jpg", "/elsewhere/images/b2.jpg"], "annotations": ["犬", "猫"]}
    (folder / "captions.jsonl").unlink()
    (tmp_path / "crossmodal3600_captions-ja.json").write_text(json.dumps(lists))
    assert build_retrieval("xm3600_ja", tmp_path).captions == [["犬"], ["猫"]]
    xtd = tmp_path / "multilingual_mscoco"
    write_images(xtd / "images", ["a1.jpg", "b2.jpg"])
    (xtd / "test_image_names.txt").write_text("a1.jpg\nb2.jpg\n")
    (xtd / "test_1kcaptions_it.txt").write_text("un cane\nun gatto\n")
    assert build_retrieval("xtd10_it", tmp_path).captions == [["un cane"], ["un gatto"]]
    (xtd / "test_1kcaptions_it.txt").write_text("un cane\n")
    with pytest.raises(DataError, match="must be parallel"):
        build_retrieval("xtd10_it", tmp_path)


def test_any_captioned_data_is_a_task(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    write_images(folder)
    for name, texts in zip(NAMES, CAPTIONS, strict=True):
        (folder / name).with_suffix(".txt").write_text("\n".join(texts))
    task = build_retrieval(str(folder))
    assert (task.name, sorted(task.captions)) == ("pictures", CAPTIONS)
    table = tmp_path / "list.csv"
    write_images(tmp_path)
    table.write_text("filepath,caption\n" + "".join(f"{name},of {name}\n" for name in NAMES))
    assert captioned(table).captions == [[f"of {name}"] for name in NAMES]
    assert captioned(table, "own").read(2) == jpeg(2)
    flickr_json(tmp_path)
    assert sorted(captioned(tmp_path / "flickr30k").captions) == CAPTIONS  # the test split, not that of training


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    assert missing_sentence("flickr30k", None) is not None
    with pytest.raises(DataError, match=r"not below eval.root=.*flickr30k/dataset_flickr30k.json"):
        build_retrieval("flickr30k", tmp_path)
    with pytest.raises(UserError, match="did you mean flickr30k"):
        build_retrieval("flicker30k", tmp_path)
    (tmp_path / "flickr30k").mkdir()
    (tmp_path / "flickr30k" / "dataset_flickr30k.json").write_text(json.dumps(karpathy()))
    with pytest.raises(DataError, match=r"names 1000.jpg, which is not in .*flickr30k-images"):
        build_retrieval("flickr30k", tmp_path)
    write_images(tmp_path / "flickr30k", NAMES[1:])
    task = build_retrieval("flickr30k", tmp_path)
    with pytest.raises(BadSample, match="missing image file"):
        task.read(0)
    (tmp_path / "flickr30k" / "dataset_flickr30k.json").write_text('{"images": [{"file": 1}]}')
    with pytest.raises(DataError, match="not a list of captions that is known"):
        build_retrieval("flickr30k", tmp_path)
    flickr_tars(tmp_path / "tars")
    (tmp_path / "tars" / "wds_flickr30k" / "test" / "1.tar").unlink()
    with pytest.raises(DataError, match=r"1\.tar is missing"):
        build_retrieval("flickr30k", tmp_path / "tars")


def test_images_of_any_kind_are_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((9, 7), np.uint8), "L").save(stream, "PNG")
    write_images(tmp_path / "flickr30k" / "images")
    (tmp_path / "flickr30k" / "images" / NAMES[1]).write_bytes(stream.getvalue())
    (tmp_path / "flickr30k" / "dataset_flickr30k.json").write_text(json.dumps(karpathy()))
    assert build_retrieval("flickr30k", tmp_path).image(1, 8).tolist() == torch.zeros(3, 8, 8).tolist()
