"""Tables, folders, JSONs of captions, mixtures and a user's own layout: what is read, and how damage is reported."""

import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.data.layouts.layout import BadSample, Layout, build_layout, num_lost
from clip_lightning.errors import DataError, UserError
from tests.data.test_loader import rows_of, steps
from tests.support.small_data import encoded, jpeg, pairs, write_tar

MakeModule = Callable[..., ContrastiveDataModule]
IMAGE_KEYS, CAPTION_KEYS = ["image", "filepath"], ["caption", "title"]


def layout(kind: str, path: Path, **changes: object) -> Layout:
    config = DataConfig(name="test", kind=kind, path=str(path), image_keys=IMAGE_KEYS, caption_keys=CAPTION_KEYS)
    config.cache.folder = config.index_folder = str(path.parent / "cache")
    for name, value in changes.items():
        setattr(config, name, value)
    return build_layout(config)


def causes(found: Layout) -> list[tuple[str, str]]:
    return [(problem.name, problem.cause) for problem in found.problems]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    return tmp_path


def test_parquet_rows_come_from_unpacked_row_groups(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for part in range(2):
        numbers = range(part * 10, part * 10 + 10)
        table = pa.table(
            {"image": [jpeg(k) for k in numbers], "caption": [f"number {k}" for k in numbers], "other": [0] * 10}
        )
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=4)
    found = layout("parquet", folder)
    assert found.shard_sizes.tolist() == [4, 4, 2, 4, 4, 2]
    for sample_id in (19, 0, 9, 10):
        sample = found.read(sample_id)
        assert sample.image == jpeg(sample_id)
        assert sample.captions == [f"number {sample_id}"]
    assert found.name_of(9) == (str(folder / "0.parquet"), "row 1 of group 2", "", 1, "")
    assert len(list((tmp_path / "cache/shards").glob("*.arrow"))) == 4
    assert pickle.loads(pickle.dumps(found)).read(9).image == jpeg(9)


@pytest.mark.parametrize("nested", [False, True])
def test_huggingface_datasets_on_disk(tmp_path: Path, nested: bool) -> None:
    rows = {
        "image": [{"bytes": jpeg(k), "path": None} for k in range(5)],
        "caption": [[f"a {k}", f"b {k}"] for k in range(5)],
    }
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))})
    data = datasets.Dataset.from_dict(rows, features=features)
    (datasets.DatasetDict({"test": data.select([0]), "train": data}) if nested else data).save_to_disk(
        tmp_path / "saved"
    )
    found = layout("parquet", tmp_path / "saved")
    assert found.num_samples == 5
    assert found.read(3).image == jpeg(3)
    assert found.captions(3) == ["a 3", "b 3"]


def test_rows_of_tables_may_be_paths_and_may_be_damaged(images: Path) -> None:
    table = pa.table({"image": ["0.jpg", "gone.jpg", None, "3.jpg", "4.jpg"], "caption": ["a", "b", "c", None, ""]})
    pq.write_table(table, images / "t.parquet")
    found = layout("parquet", images / "t.parquet")
    assert found.read(0) == (jpeg(0), ["a"])
    for sample_id, cause in (
        (1, "missing image file"),
        (2, "missing image"),
        (3, "missing caption"),
        (4, "empty caption"),
    ):
        with pytest.raises(BadSample, match=cause):
            found.read(sample_id)


def test_a_missing_column_is_reported_with_those_there_are(images: Path) -> None:
    pq.write_table(pa.table({"picture": [b""], "words": [""]}), images / "t.parquet")
    with pytest.raises(DataError, match=r"has no column image or filepath \(data.image_keys\); it has picture, words"):
        layout("parquet", images / "t.parquet")
    (images / "t.csv").write_text("filepath,words\na,b\n")
    with pytest.raises(
        DataError, match=r"has no column caption or title \(data.caption_keys\); it has filepath, words"
    ):
        layout("table", images / "t.csv")
    (images / "no.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match="is not a parquet file that can be read"):
        layout("parquet", images / "no.parquet")


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_tables_of_paths_leave_out_damaged_rows(images: Path, delimiter: str) -> None:
    rows = [b"title,extra,filepath", b"first,x,0.jpg", b'"two, with a comma\nand a line",x,1.jpg', b",x,2.jpg"]
    rows += [b"gr\xfcn,x,3.jpg", b"too,few", b"no path,x,", "größe,x,5.jpg".encode()]
    (images / "t.csv").write_bytes(b"\n".join(rows).replace(b",", delimiter.encode()) + b"\n")
    found = layout("table", images / "t.csv")
    comma = "two\t with a comma" if delimiter == "\t" else "two, with a comma"
    assert [found.captions(k)[0] for k in range(found.num_samples)] == ["first", f"{comma}\nand a line", "größe"]
    assert found.read(1).image == jpeg(1)
    reported = sorted(cause for _, cause in causes(found))
    note = "quoted field with a newline and a delimiter"
    assert reported == ["caption is not UTF-8", "damaged row", "empty caption", "missing image", note]
    assert num_lost(found.problems) == 4
    # The second time it comes from the index folder, and a changed table does not.
    assert layout("table", images / "t.csv").fingerprint() == found.fingerprint()
    (images / "t.csv").write_bytes(b"title,filepath\nother,0.jpg\n")
    assert layout("table", images / "t.csv").captions(0) == ["other"]


def test_json_lines(images: Path) -> None:
    rows = [{"image": "0.jpg", "caption": "one"}, {"image": "1.jpg", "caption": ["two", "three"]}, {"image": "2.jpg"}]
    lines = [json.dumps(row) for row in rows]
    (images / "t.jsonl").write_text("\n".join([*lines, "{broken", "", "[1]"]))
    found = layout("table", images / "t.jsonl")
    assert [found.captions(k) for k in range(2)] == [["one"], ["two", "three"]]
    assert causes(found) == [("line 3", "missing caption"), ("line 4", "damaged row"), ("line 6", "damaged row")]


def test_folders_with_a_text_beside_each_image(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name, text in (("a/1", "one\n\ntwo\n"), ("a/b/2", "three"), ("3", "")):
        path = folder / f"{name}.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(len(name)))
        path.with_suffix(".txt").write_text(text)
    (folder / "alone.jpg").write_bytes(jpeg(0))
    (folder / ".txt").write_text("no name")
    found = layout("folder", folder, image_keys=["jpg"], caption_keys=["txt"])
    assert found.num_samples == 3
    assert causes(found) == [("alone.jpg", "missing caption")]
    assert [found.captions(k) for k in (1, 2)] == [["one", "two"], ["three"]]
    with pytest.raises(BadSample, match="empty caption"):
        found.read(0)
    with pytest.raises(DataError, match="is not a folder"):
        layout("folder", folder / "nowhere")


def test_links_are_followed_once_and_other_formats_are_read_or_counted(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "a/loop").symlink_to(folder)
    (tmp_path / "elsewhere/1.jpg").write_bytes(jpeg(1))
    (tmp_path / "elsewhere/1.txt").write_text("linked")
    (folder / "2.bmp").write_bytes(encoded(Image.new("RGB", (8, 8)), "BMP"))
    for name in ("3.tiff", "4.heic"):
        (folder / name).write_bytes(b"x")
    for name in ("2", "3", "4", "5", "README"):
        (folder / f"{name}.txt").write_text(f"caption of {name}")
    (folder / ".DS_Store").write_bytes(b"x")
    found = layout("folder", folder, image_keys=["jpg", "bmp"], caption_keys=["txt"])
    assert [found.captions(k) for k in range(found.num_samples)] == [["caption of 2"], ["linked"]]
    assert causes(found) == [
        ("3.tiff", "unknown extension"),
        ("4.heic", "unknown extension"),
        ("5.txt", "missing image"),
    ]
    assert found.problems[0].hint == "images that end in .tiff; convert them to JPEG or PNG"
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/1.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no usable sample \(its files by suffix: \.mp4: 1\)"):
        layout("folder", tmp_path / "videos", image_keys=["jpg"], caption_keys=["txt"])
    only_jpg = layout("folder", folder, image_keys=["jpg"], caption_keys=["txt"])
    assert only_jpg.problems[0].hint == "images that end in .bmp; see data.image_keys"


@pytest.mark.slow
def test_coco_with_its_five_captions(tmp_path: Path, module: MakeModule) -> None:
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").mkdir()
    for number in range(3):
        (folder / f"train2017/{number}.jpg").write_bytes(jpeg(number))
    annotations = [{"image_id": 7 + k % 2, "caption": f"caption {k}"} for k in range(10)]
    document = {"images": [{"id": 7 + k, "file_name": f"{k}.jpg"} for k in range(3)], "annotations": annotations}
    (folder / "annotations/captions_train2017.json").write_text(json.dumps(document))
    found = layout("coco", folder)
    assert found.num_samples == 2
    assert found.captions(1) == [f"caption {k}" for k in range(1, 10, 2)]
    assert found.read(1).image == jpeg(1)
    assert causes(found) == [("2.jpg", "missing caption")]
    # Which caption is taken is drawn by seed, epoch and sample: all come, each as often.
    made = module(folder, kind="coco", total_samples=800, max_bad_share=1.0)
    chosen = [row[3] for batch in made.train_dataloader() for row in rows_of(batch) if row[1] == 0]
    counts = [chosen.count(text) for text in set(chosen)]
    assert len(counts) == 5
    assert 50 < min(counts) < max(counts) < 110


def test_karpathys_splits_train_on_train_only(tmp_path: Path) -> None:
    (tmp_path / "flickr30k-images").mkdir()
    (tmp_path / "flickr30k-images/0.jpg").write_bytes(jpeg(0))
    images = [
        {"filename": f"{k}.jpg", "split": split, "sentences": [{"raw": "a"}, {"raw": "b"}]}
        for k, split in enumerate(("train", "test", "val", "restval"))
    ]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    found = layout("coco", tmp_path)
    assert found.num_samples == 2
    assert found.read(0) == (jpeg(0), ["a", "b"])


@pytest.mark.parametrize("content", ["no json", "[]", '{"images": 3}', '{"annotations": [], "images": [{"x": 1}]}'])
def test_a_json_without_captions_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(DataError, match="is not a JSON of captions"):
        layout("coco", tmp_path / "captions.json")


def test_a_users_own_layout_is_named_by_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: MakeModule
) -> None:
    (tmp_path / "my_data.py").write_text(
        "import numpy as np\n"
        "from clip_lightning.data.layouts.layout import Layout, RawSample\n"
        "class Mine(Layout):\n"
        "    def __init__(self, config, count):\n"
        "        self.num_samples, self.shard_sizes = count, np.array([count])\n"
        "    def read(self, sample_id):\n"
        "        return RawSample(np.full((9, 9, 3), sample_id, np.uint8), ['picture'])\n"
        "def wrong(config):\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = module(None, _target_="my_data.Mine", options={"count": 20}, total_samples=40)
    rows = [row for batch in made.train_dataloader() for row in rows_of(batch)]
    assert sorted(row[1] for row in rows) == sorted([*range(20)] * 2)
    with pytest.raises(DataError, match=r"does not return a clip_lightning\.data\.layouts\.layout\.Layout"):
        module(None, _target_="my_data.wrong")
    for target in ("my_data.none", "no_such_package.Mine", "nodots"):
        with pytest.raises(UserError, match="cannot be imported"):
            module(None, _target_=target)
    del sys.modules["my_data"]


@pytest.mark.slow  # starts eighteen workers
def test_a_mixture_reads_from_all_its_parts(module: MakeModule, shards: Path, tmp_path: Path) -> None:
    other = write_tar(tmp_path / "other.tar", pairs(1000, 40)).parent / "other.tar"
    weights, paths = {"webdataset": 3.0, "cc3m": 1.0}, {"webdataset": str(shards), "cc3m": str(other)}

    parts = {name: asdict(DataConfig(name=name, kind="webdataset", path=path)) for name, path in paths.items()}

    def mixed(**changes: object) -> ContrastiveDataModule:
        return module(None, kind="mixture", mixture=weights, parts=parts, **changes)

    made = mixed()
    whole = steps(made, 0, 50, 1, 0)
    share = np.mean([row[1] < 59 for row in whole])
    assert 0.65 < share < 0.85
    assert made.num_samples == 99
    assert made.layout.captions(59) == ["picture number 1000"]
    assert steps(mixed(), 0, 20, 2, 1) + steps(mixed(), 20, 50, 4, 0) == whole
    assert made.fingerprint != module(shards).fingerprint
    again = steps(mixed(resampled=True), 0, 50, 1, 0)
    assert again == steps(mixed(resampled=True), 0, 7, 2, 2) + steps(mixed(resampled=True), 7, 50, 1, 0)


def test_an_unknown_kind_or_part_is_reported(module: MakeModule, shards: Path) -> None:
    with pytest.raises(DataError, match=r"data\.kind=tape is not known; choose one of scenes, webdataset"):
        module(shards, kind="tape")
    with pytest.raises(DataError, match=r"data\.parts lacks cc3m"):
        module(None, kind="mixture", mixture={"cc3m": 1.0})
