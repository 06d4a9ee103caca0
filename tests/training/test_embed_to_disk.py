"""Features as files: parts of several workers, a second start, damaged images, and what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from clip_lightning import embed, embed_images, embed_images_to, embed_texts, embed_texts_to
from clip_lightning.config import compose
from clip_lightning.data.layouts.layout import build_layout
from clip_lightning.errors import UserError
from clip_lightning.export import to_safetensors
from clip_lightning.training.embed_to_disk import worker_and_count
from clip_lightning.training.embedding import LoadedModel, transform_of
from tests.export.models import KINDS, opened


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    found = opened(KINDS["ViT, GELU"][0](tmp_path_factory.mktemp("model")))
    return LoadedModel(found.model, found.tokenizer, transform_of(found.config.vision))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for k in range(10):
        Image.fromarray(random.integers(0, 256, (20 + k, 24, 3), np.uint8)).save(folder / f"{k}.png")
    return sorted(folder.glob("*.png"))


def test_workers_fill_one_folder_and_a_second_start_adds_what_is_missing(
    loaded: LoadedModel, images: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "features"
    lines: list[str] = []

    def run(worker: int) -> tuple[int, int]:
        written = embed_images_to(
            out, loaded, images, batch=2, rows_per_part=3, worker=(worker, 3), report=lines.append
        )
        return written.num_rows, written.num_resumed

    assert [run(worker) for worker in range(3)] == [(4, 0), (3, 0), (3, 0)]
    table = pd.read_parquet(out / "part-00001.parquet")
    assert table["row"].tolist() == [3, 4, 5]
    everything = pd.concat(pd.read_parquet(part) for part in sorted(out.glob("part-*")))
    assert everything["key"].tolist() == [str(path) for path in images]
    found = torch.from_numpy(np.stack(everything["features"]))
    torch.testing.assert_close(found, embed_images(loaded, images), atol=1e-6, rtol=0)
    (out / "part-00003.parquet").unlink()
    assert run(0) == (4, 1)
    assert lines[-1].startswith("part-00003.parquet: 1 rows")


def test_the_images_of_a_layout_have_their_features(loaded: LoadedModel, images: list[Path], tmp_path: Path) -> None:
    images[7].write_bytes(b"not an image")
    for path in images:
        path.with_suffix(".txt").write_text("a caption")
    config = compose.load("train", ["data=folder", f"data.path={images[0].parent}"], check=False)
    written = embed_images_to(tmp_path / "out", loaded, build_layout(config.data), batch=3, report=lambda line: None)
    assert (written.num_rows, written.num_unreadable) == (10, 1)
    table = pd.read_parquet(tmp_path / "out")
    assert table["key"].tolist() == [path.name for path in images]
    found = torch.from_numpy(np.stack(table["features"].drop(7)))
    expected = embed_images(loaded, [path for k, path in enumerate(images) if k != 7])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_an_unreadable_image_has_no_features_and_is_counted(
    loaded: LoadedModel, images: list[Path], tmp_path: Path
) -> None:
    images[4].write_bytes(images[4].read_bytes()[:40])
    written = embed_images_to(tmp_path / "out", loaded, images, file_format="npy", report=lambda line: None)
    assert (written.num_rows, written.num_unreadable) == (10, 1)
    features = np.load(tmp_path / "out" / "part-00000.npy", mmap_mode="r")
    assert np.isnan(features).all(1).tolist() == [k == 4 for k in range(10)]
    embed_images_to(tmp_path / "table", loaded, images, report=lambda line: None)
    assert pd.read_parquet(tmp_path / "table")["features"].isna().tolist() == [k == 4 for k in range(10)]


def test_features_of_another_model_or_of_other_inputs_are_refused(
    loaded: LoadedModel, images: list[Path], tmp_path: Path
) -> None:
    texts = ["a cat", "two dogs", "a boat"]
    embed_texts_to(tmp_path / "out", loaded, texts, report=lambda line: None)
    found = np.stack(pd.read_parquet(tmp_path / "out")["features"])
    torch.testing.assert_close(torch.from_numpy(found), embed_texts(loaded, texts))
    with pytest.raises(UserError, match="features of other inputs, num_rows;"):
        embed_texts_to(tmp_path / "out", loaded, texts[:2])
    weight = next(loaded.model.parameters())
    with torch.no_grad():
        weight += 1
    try:
        with pytest.raises(UserError, match="features of other weights;"):
            embed_texts_to(tmp_path / "out", loaded, texts)
    finally:
        with torch.no_grad():
            weight -= 1


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_MAX": "9"}, (2, 5)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "4",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_MAX": "8",
                "SLURM_ARRAY_TASK_STEP": "4",
                "SLURM_STEP_ID": "0",
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
            },
            (3, 6),
        ),
    ],
)
def test_the_launcher_decides_the_worker(
    variables: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert worker_and_count() == expected


@pytest.mark.ci
def test_the_command_embeds_a_folder_and_a_file_of_texts(
    images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    to_safetensors.export(opened(KINDS["ViT, GELU"][0](tmp_path)), source)
    command = [str(source), "--out", str(tmp_path / "out"), "--rows-per-part", "4", "--format", "npy"]
    assert embed.main([*command, str(images[0].parent)]) == 0
    assert "10 rows, 0 of them unreadable, 0 parts from an earlier start" in capsys.readouterr().out
    again = [sys.executable, "-m", "clip_lightning.embed", *command, str(images[0].parent)]  # in another process
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert "3 parts from an earlier start" in done.stdout, done.stderr
    (tmp_path / "texts.txt").write_text("a cat\na dog\n")
    assert embed.main([str(source), "--texts", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "texts")]) == 0
    assert len(pd.read_parquet(tmp_path / "texts")) == 2
    with pytest.raises(UserError, match="either IMAGES or --texts"):
        embed.main([str(source), "--out", "x"])
