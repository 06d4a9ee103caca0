"""Features on disk: found again where nothing has changed, made again where anything has, and verified."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_lightning.config.schema import LossConfig, VisionConfig
from clip_lightning.data.images.decode import Resize
from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import UserError
from clip_lightning.evaluation.features import FeatureStore, image_features
from clip_lightning.evaluation.labelled import labelled_images, matched_labels
from clip_lightning.model.clip import CLIP
from clip_lightning.model.vision import VisionTower
from tests.support.small_data import jpeg, write_tar

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pictures:
    name: str
    read: Callable[[int], bytes]


PICTURES = Pictures("pictures", jpeg)


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(0)
    options = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    vision = VisionConfig(
        name="small", timm="vit_tiny_patch16_224", image_size=16, batch_norm=False, options=options, init="timm"
    )
    return CLIP(VisionTower(vision, 8), torch.nn.Identity(), LossConfig()).eval()


def features(clip: CLIP, images: Any = PICTURES, num: int = 9, **settings: Any) -> Any:
    return image_features(clip, images, num, CPU, **({"image_size": 16, "batch": 4} | settings))


def test_pooled_features_are_what_the_projection_reads(clip: CLIP) -> None:
    pooled, projected = (features(clip, part=part) for part in ("pooled", "projected"))
    assert pooled.values.shape == (9, 24)
    with torch.no_grad():
        expected = clip.vision.projection(torch.from_numpy(pooled.values)).numpy()
    assert projected.values == pytest.approx(expected, abs=1e-5)
    assert pooled.values.dtype == np.float32


def test_stored_features_are_read_where_nothing_has_changed(
    clip: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path)
    made = features(clip, store=store)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    monkeypatch.setattr(type(clip.vision), "pooled", lambda *_: pytest.fail("the tower ran"))
    again = features(clip, store=store)
    assert np.array_equal(made.values, again.values)
    assert again.kept.tolist() == list(range(9))


def test_anything_that_decides_features_makes_others(clip: CLIP, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    settings: list[dict[str, Any]] = [
        {},
        {"part": "projected"},
        {"precision": "bf16"},
        {"resize": Resize("squash")},
        {"num": 8},
        {"images": Pictures("pictures", lambda k: jpeg(k + (k == 4)))},
        {"architecture": "another"},
    ]
    for number, setting in enumerate(settings, 1):
        features(clip, store=store, **setting)
        assert len(list(tmp_path.glob("*.safetensors"))) == number, setting
    with torch.no_grad():
        parameter = next(clip.vision.backbone.parameters())
        parameter.view(-1)[0] += 1e-3
    features(clip, store=store)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(settings) + 1
    with torch.no_grad():
        clip.vision.projection.weight[0, 0] += 1  # is not read by what comes before the projection
    features(clip, store=store)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(settings) + 1


def test_a_damaged_file_is_made_again(clip: CLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore(tmp_path)
    made = features(clip, store=store)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert np.array_equal(features(clip, store=store).values, made.values)
    assert "does not verify" in capsys.readouterr().out
    file.write_bytes(content[:100])
    assert np.array_equal(features(clip, store=store).values, made.values)
    assert "is damaged" in capsys.readouterr().out
    features(clip, store=store)
    assert capsys.readouterr().out == ""


def test_images_that_cannot_be_read_have_no_features(clip: CLIP, tmp_path: Path) -> None:
    def read(k: int) -> bytes:
        return b"not an image" if k == 2 else jpeg(k)[: -200 if k == 6 else None]

    found = features(clip, Pictures("damaged", read), store=FeatureStore(tmp_path))
    assert found.kept.tolist() == [0, 1, 3, 4, 5, 7, 8]
    whole = features(clip)
    assert found.values == pytest.approx(whole.values[found.kept], abs=1e-6)

    def missing(k: int) -> bytes:
        raise BadSample("missing image file")

    assert features(clip, Pictures("missing", missing)).values.shape == (0, 24)


def test_labelled_images_are_read_by_layout(tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    for split, shift in (("train", 0), ("test", 10)):
        members = [(f"{k}.jpg", jpeg(k + shift)) for k in range(6)] + [
            (f"{k}.cls", str(k % 3).encode()) for k in range(6)
        ]
        write_tar(tars / split / "0.tar", sorted(members))
        (tars / split / "nshards.txt").write_text("1\n")
    train, test = labelled_images(str(tars)), labelled_images(str(tars), "test")
    assert train.labels.tolist() == test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert test.read(1) == jpeg(11)
    assert labelled_images(str(tars / "train"), "test").read(1) == jpeg(1)  # the folder of a split itself
    classes = tmp_path / "classes"
    for k, name in enumerate(["ox", "ewe", "ox", "hen"]):
        (classes / name).mkdir(parents=True, exist_ok=True)
        (classes / name / f"{k}.jpg").write_bytes(jpeg(k))
    found = labelled_images(str(classes))
    assert (found.classnames, found.labels.tolist()) == (["ewe", "hen", "ox"], [0, 1, 2, 2])
    assert found.read(1) == jpeg(3)
    assert matched_labels(found, ["ox", "pig", "hen", "ewe"]).tolist() == [3, 2, 0, 0]
    with pytest.raises(UserError, match="the class 'ewe' is not in the list of 2 classes"):
        matched_labels(found, ["ox", "hen"])
    assert labelled_images("shape", num_scenes=5).image(3, 16).shape == (3, 16, 16)
    with pytest.raises(UserError, match="has no labelled images of the train split"):
        labelled_images(str(tmp_path / "absent"))


def test_labelled_parquet_is_read_by_row_group(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"image": {"bytes": jpeg(k), "path": None}, "label": k % 2} for k in range(7)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train-00000.parquet", row_group_size=3)
    found = labelled_images(str(tmp_path))
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert [found.read(k) for k in (6, 0, 3, 2)] == [jpeg(k) for k in (6, 0, 3, 2)]
