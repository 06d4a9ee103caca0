"""Which data option reads a path, by what it holds."""

from pathlib import Path

import pytest

from clip_lightning.config.detect import data_option
from clip_lightning.errors import DataError


@pytest.mark.parametrize(
    ("files", "path", "option"),
    [
        (["0.tar", "0.tar.idx"], "", "webdataset"),
        (["a/0.tar", "b/1.tar"], "", "webdataset"),
        (["0.tar"], "0.tar", "webdataset"),
        ([], "{00000..00009}.tar", "webdataset"),
        (["x/0.parquet"], "", "parquet"),
        (["train/x.arrow", "dataset_dict.json"], "", "parquet"),
        (["t.tsv"], "t.tsv", "csv"),
        (["annotations/captions_train2017.json", "train2017/0.jpg"], "", "coco"),
        (["a/b/0.JPG", "a/b/0.txt"], "", "folder"),
    ],
)
def test_the_option_follows_from_the_names(tmp_path: Path, files: list[str], path: str, option: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert data_option(str(tmp_path / path)) == option


def test_what_is_not_known_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("")
    for path, part in ((tmp_path, r"t\.csv"), (tmp_path / "nowhere", "does not exist"), (tmp_path / "x.zip", "exist")):
        with pytest.raises(DataError, match=part):
            data_option(str(path))
    assert data_option("s3://bucket/{000..009}.tar") == "webdataset"
    with pytest.raises(DataError, match="s3://bucket"):
        data_option("s3://bucket/folder")
