"""SugarCrepe and Winoground: the scores of cases worked by hand, the official files, and CLIP_benchmark's functions."""

import io
import itertools
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from clip_benchmark.metrics import image_caption_selection
from PIL import Image

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.compositional import (
    CHANCE,
    SUGAR_CREPE,
    CompositionalEvaluator,
    CompositionalTask,
    build_compositional,
    choose_both,
    choose_caption,
)
from tests.support.small_data import jpeg

CPU = torch.device("cpu")
OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "evalsets" / "sugar_crepe" / "data"


def test_winoground_scores_of_cases_worked_by_hand() -> None:
    cases = {  # [[image 0 with captions 0, 1], [image 1 with captions 0, 1]] -> text, image, group score
        ((0.9, 0.1), (0.2, 0.8)): (1, 1, 1),
        ((0.5, 0.4), (0.6, 0.7)): (1, 0, 0),  # caption 0 prefers image 1
        ((0.5, 0.6), (0.1, 0.7)): (0, 1, 0),  # image 0 prefers caption 1
        ((0.1, 0.9), (0.8, 0.2)): (0, 0, 0),
        ((0.5, 0.5), (0.5, 0.5)): (1 / 4, 1 / 4, 1 / 6),
        ((0.5, 0.5), (0.4, 0.6)): (1 / 2, 1, 1 / 2),
        ((0.5, 0.5), (0.5, 0.6)): (1 / 2, 1 / 2, 1 / 3),
    }
    found = choose_both(torch.tensor(list(cases)))
    assert list(zip(*(values.tolist() for values in found.values()), strict=True)) == [
        pytest.approx(expected) for expected in cases.values()
    ]


def test_a_tie_counts_as_breaking_it_at_random_would() -> None:
    generator = torch.Generator().manual_seed(0)
    for scores in itertools.product((0.0, 1.0), repeat=4):
        tied = torch.tensor(scores).view(1, 2, 2)
        broken = tied + 1e-3 * torch.rand(20_000, 2, 2, generator=generator)
        expected = {name: values.mean() for name, values in choose_both(broken).items()}
        for name, values in choose_both(tied).items():
            assert values.item() == pytest.approx(expected[name].item(), abs=0.015), (scores, name)


def test_a_caption_is_chosen_by_its_score() -> None:
    scores = torch.tensor([[[0.3, 0.2]], [[0.2, 0.3]], [[0.2, 0.2]]])
    assert choose_caption(scores)["caption_accuracy"].tolist() == [1, 0, 0.5]


def drawn_task(images: int, num: int = 30) -> CompositionalTask:
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (images * num, 8, 8, 3), dtype=np.uint8)
    captions = [(f"a {k} on b {k % 7}", f"b {k % 7} on a {k} {k % 3}") for k in range(num)]
    numbers = np.arange(images * num).reshape(num, images)
    return CompositionalTask("drawn", ["drawn"] * num, numbers, captions, images * num, pixels.__getitem__)


@pytest.mark.parametrize("images", [1, 2])
def test_equals_clip_benchmarks_functions(images: int, model: Any, tokenizer: Any) -> None:
    task = drawn_task(images)
    ours = {record.what: record.value for record in CompositionalEvaluator(task, 8).run(model, tokenizer, CPU)}

    class Packed:
        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            return model.encode_image(pixels)

        def encode_text(self, packed: torch.Tensor) -> torch.Tensor:
            return model.encode_text(packed[:, 1:], packed[:, 0])

    def tokens(texts: list[str]) -> torch.Tensor:
        encoded = tokenizer(texts)
        return torch.from_numpy(np.concatenate([encoded.lengths[:, None], encoded.tokens], axis=1))

    model.eval()
    pixels = torch.stack([task.image(k, 8) for k in range(task.num_images)]).unflatten(0, (-1, images))
    loader = [(pixels[:, 0] if images == 1 else pixels, [list(pair) for pair in task.captions])]
    theirs = image_caption_selection.evaluate(Packed(), loader, tokens, "cpu", amp=False)
    if images == 1:  # whose "text" score is the choice of a caption
        assert ours == {"caption_accuracy": pytest.approx(theirs["text_acc"])}
    else:
        assert ours["text_score"] == pytest.approx(theirs["text_acc"])
        assert ours["image_score"] == pytest.approx(theirs["image_acc"])
        assert ours["group_score"] == pytest.approx(theirs["acc"])


def test_collapsed_features_score_chance(model: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        model.vision[-1].weight.zero_()
        model.text[-1].weight.zero_()
    for images in (1, 2):
        for record in CompositionalEvaluator(drawn_task(images), 8).run(model, tokenizer, CPU):
            assert record.value == pytest.approx(CHANCE[record.what], abs=1e-6)
            assert record.chance == CHANCE[record.what]


def write_sugar_crepe(root: Path, rows: int = 3) -> None:
    folder = root / "sugar_crepe"
    folder.mkdir(parents=True)
    (root / "coco" / "val2017").mkdir(parents=True)
    for number, subset in enumerate(SUGAR_CREPE):
        document = {}
        for k in range(rows):
            name = f"{1000 * (k % 2) + number:012d}.jpg"
            (root / "coco" / "val2017" / name).write_bytes(jpeg(number + k))
            key = str(k if k < 1 else k + 1)  # a key is missing, as in swap_obj.json
            document[key] = {"filename": name, "caption": f"{subset} {k}", "negative_caption": f"not {subset} {k}"}
        (folder / f"{subset}.json").write_text(json.dumps(document))


def test_sugar_crepe_is_read_and_averaged_over_its_subsets(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    write_sugar_crepe(tmp_path)
    task = build_compositional("sugar_crepe", tmp_path)
    assert (task.num_samples, task.num_images) == (21, 14)
    assert task.captions[1] == ("add_att 1", "not add_att 1")
    records = CompositionalEvaluator(task, 16).run(model, tokenizer, CPU)
    assert [record.task for record in records] == [*(f"sugar_crepe/{name}" for name in SUGAR_CREPE), "sugar_crepe"]
    assert [record.n for record in records] == [3] * 7 + [21]
    assert records[-1].value == pytest.approx(np.mean([record.value for record in records[:-1]]))
    assert all(record.low <= record.value <= record.high for record in records)
    (one,) = CompositionalEvaluator(build_compositional("sugar_crepe/swap_obj", tmp_path), 16).run(
        model, tokenizer, CPU
    )
    assert (one.task, one.value) == ("sugar_crepe/swap_obj", records[6].value)


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official files are not beside this checkout")
def test_the_official_files_have_all_captions(tmp_path: Path) -> None:
    shutil.copytree(OFFICIAL, tmp_path / "sugar_crepe" / "data")
    for name in ("add_att", "swap_obj"):
        first = next(iter(json.loads((OFFICIAL / f"{name}.json").read_text()).values()))["filename"]
        image = tmp_path / "sugar_crepe" / "val2017" / first
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(jpeg(0))
    task = build_compositional("sugar_crepe", tmp_path)
    counts = {name: list(task.subsets).count(name) for name in SUGAR_CREPE}
    assert counts == SUGAR_CREPE
    assert build_compositional("sugar_crepe/swap_obj", tmp_path).num_samples == 245
    with pytest.raises(BadSample, match="missing image file"):
        task.read(task.num_images - 1)


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(jpeg(number))).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("layout", ["folder", "zip", "parquet"])
def test_winoground_is_read_from_its_layouts(layout: str, tmp_path: Path, model: Any, tokenizer: Any) -> None:
    folder = tmp_path / "winoground" / "data"
    folder.mkdir(parents=True)
    rows = [
        {"id": k, "caption_0": f"a {k} and b", "caption_1": f"b and a {k}"}
        | {f"image_{i}": f"ex_{k}_img_{i}" for i in (0, 1)}
        for k in range(5)
    ]
    files = {f"ex_{k}_img_{i}.png": png(2 * k + i) for k in range(5) for i in (0, 1)}
    if layout == "parquet":
        table = [row | {f"image_{i}": {"bytes": files[f"{row[f'image_{i}']}.png"]} for i in (0, 1)} for row in rows]
        pq.write_table(pa.Table.from_pylist(table), folder / "test-00000-of-00001.parquet")
    else:
        (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if layout == "zip":
            with zipfile.ZipFile(folder / "images.zip", "w") as archive:
                for name, content in files.items():
                    archive.writestr(f"images/{name}", content)
        else:
            (folder / "images").mkdir()
            for name, content in files.items():
                (folder / "images" / name).write_bytes(content)
    task = build_compositional("winoground", tmp_path)
    assert task.captions[3] == ("a 3 and b", "b and a 3")
    assert task.read(7) == files["ex_3_img_1.png"]
    records = CompositionalEvaluator(task, 16).run(model, tokenizer, CPU)
    assert [(record.what, record.n) for record in records] == [
        ("text_score", 5),
        ("image_score", 5),
        ("group_score", 5),
    ]


def test_instances_without_their_images_are_left_out(model: Any, tokenizer: Any) -> None:
    task = drawn_task(2)

    def read(k: int) -> Any:
        if k in (4, 5, 9):
            raise BadSample("truncated image")
        return task.read(k)

    damaged = CompositionalTask("drawn", task.subsets, task.images, task.captions, task.num_images, read)
    evaluator = CompositionalEvaluator(damaged, 8)
    records = evaluator.run(model, tokenizer, CPU)
    assert {record.n for record in records} == {28}
    assert records[0].note.startswith("3 of 60 images could not be read and are not counted; the first is image 4")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown compositional task 'sugarcrepe'; known are sugar_crepe"):
        build_compositional("sugarcrepe", tmp_path)
    for name in ("sugar_crepe", "winoground"):
        with pytest.raises(DataError, match=f"{name} is not below eval.root"):
            build_compositional(name, tmp_path)
    write_sugar_crepe(tmp_path)
    (tmp_path / "sugar_crepe" / "swap_att.json").unlink()
    with pytest.raises(DataError, match=r"swap_att.json cannot be read"):
        build_compositional("sugar_crepe", tmp_path)
