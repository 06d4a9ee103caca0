"""The functions behind the demo's page, without Gradio; with it, the page itself through its own API."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_lightning import demo, embed_images, embed_texts
from clip_lightning.errors import UserError
from clip_lightning.training.embedding import LoadedModel, transform_of
from tests.export.models import KINDS, opened

LABELS = ["a red square", "a blue circle", "noise"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    found = {kind: opened(KINDS[kind][0](tmp_path_factory.mktemp("model"))) for kind in ("ViT, GELU", "ViT, QuickGELU")}
    return {kind: LoadedModel(one.model, one.tokenizer, transform_of(one.config.vision)) for kind, one in found.items()}


@pytest.fixture(scope="module")
def loaded(models: dict[str, LoadedModel]) -> LoadedModel:
    return models["ViT, GELU"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    random = np.random.default_rng(0)
    for k, name in enumerate(["a.png", "b.jpg", "more/c.png", "more/d.webp"]):
        Image.fromarray(random.integers(0, 256, (40 + k, 50, 3), np.uint8)).save(folder / name)
    (folder / "damaged.jpg").write_bytes((folder / "b.jpg").read_bytes()[:60])
    (folder / ".hidden.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "notes.txt").write_text("no image")
    return folder


def expected(loaded: LoadedModel, image: Path, prompts: list[str]) -> list[float]:
    """Figure 21 by hand: exp(scale * cosine), divided by its sum over the labels."""
    cosines = (embed_texts(loaded, prompts) @ embed_images(loaded, [image])[0]).double()
    weights = (float(loaded.model.log_logit_scale.detach().exp()) * cosines).exp()
    return (weights / weights.sum()).tolist()


def test_probabilities_are_a_softmax_at_the_models_own_scale(loaded: LoadedModel, folder: Path) -> None:
    found = demo.probabilities(loaded, folder / "a.png", LABELS)
    assert list(found) == LABELS
    assert list(found.values()) == pytest.approx(expected(loaded, folder / "a.png", LABELS), abs=1e-6)
    prompts = [f"a photo of {label}." for label in LABELS]
    found = demo.probabilities(loaded, (folder / "a.png").read_bytes(), LABELS, "a photo of {c}.")
    assert list(found.values()) == pytest.approx(expected(loaded, folder / "a.png", prompts), abs=1e-6)


def test_a_larger_scale_makes_the_best_label_more_probable(loaded: LoadedModel, folder: Path) -> None:
    before = demo.probabilities(loaded, folder / "a.png", LABELS)
    with torch.no_grad():
        loaded.model.log_logit_scale += 1
    try:
        after = demo.probabilities(loaded, folder / "a.png", LABELS)
    finally:
        with torch.no_grad():
            loaded.model.log_logit_scale -= 1
    best = max(before, key=before.__getitem__)
    assert max(after, key=after.__getitem__) == best
    assert after[best] > before[best]


def test_a_folder_is_searched_by_text(loaded: LoadedModel, folder: Path) -> None:
    images = demo.embed_folder(loaded, folder)
    found_names = [path.relative_to(folder).as_posix() for path in images.paths]
    assert found_names == ["a.png", "b.jpg", "more/c.png", "more/d.webp"]
    assert images.num_unreadable == 1
    cosines = (embed_images(loaded, images.paths) @ embed_texts(loaded, ["noise"])[0]).tolist()
    found = demo.search(loaded, images, " noise ", num_results=3)
    assert [match.path for match in found] == [images.paths[k] for k in np.argsort(cosines)[::-1][:3]]
    assert [match.cosine for match in found] == pytest.approx(sorted(cosines)[:0:-1], abs=1e-5)


def test_two_models_see_the_same_image(models: dict[str, LoadedModel], folder: Path) -> None:
    found = demo.compare(models, folder / "b.jpg", LABELS)
    assert list(found) == list(models)
    for name, loaded in models.items():
        assert found[name] == demo.probabilities(loaded, folder / "b.jpg", LABELS)


def test_the_table_has_the_best_label_of_the_first_model_first() -> None:
    first, second = {"a": 0.25, "b": 0.7481, "c": 0.0019}, {"a": 0.5, "b": 0.4, "c": 0.1}
    assert demo.table([first]) == [["b", "74.81%"], ["a", "25.00%"], ["c", "0.19%"]]
    assert demo.table([first, second])[0] == ["b", "74.81%", "40.00%"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("a cat, a dog", ["a cat", "a dog"]),
        ("a cat\n\n a dog, asleep \n", ["a cat", "a dog, asleep"]),
        ("a cat", ["a cat"]),
    ],
)
def test_labels_are_lines_or_separated_by_commas(text: str, labels: list[str]) -> None:
    assert demo.labels_of(text) == labels


def test_mistakes_are_sentences(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="type labels"):
        demo.labels_of(" ,\n")
    with pytest.raises(UserError, match="'a cat' is typed twice"):
        demo.labels_of("a cat, a dog, a cat")
    with pytest.raises(UserError, match="1,001 labels are too many"):
        demo.labels_of(",".join(map(str, range(1001))))
    with pytest.raises(UserError, match=r"has no \{c\}"):
        demo.probabilities(loaded, folder / "a.png", LABELS, "a photo")
    with pytest.raises(UserError, match="cannot be read"):
        demo.probabilities(loaded, folder / "damaged.jpg", LABELS)
    with pytest.raises(UserError, match="type what to search for"):
        demo.search(loaded, demo.ImageFolder([], np.zeros((0, 48), np.float32), 0), " ")
    with pytest.raises(UserError, match="there is no such folder"):
        demo.embed_folder(loaded, tmp_path / "absent")
    with pytest.raises(UserError, match="has no image"):
        demo.embed_folder(loaded, tmp_path)
    (tmp_path / "damaged.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of its 1 image files"):
        demo.embed_folder(loaded, tmp_path)


def test_models_of_one_name_keep_their_whole_source(tmp_path: Path) -> None:
    sources = [f"{tmp_path}/first/model/", f"{tmp_path}/second/model", "openai:ViT-B/32", str(tmp_path)]
    for source in sources[:2]:
        Path(source).mkdir(parents=True)
    assert demo.names_of(sources) == [*sources[:2], "openai:ViT-B/32", tmp_path.name]


@pytest.mark.slow
def test_the_command_reports_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clip_lightning.demo", str(tmp_path), "--images", str(tmp_path / "absent")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no such folder" in done.stderr or "pip install 'clip_lightning[demo]'" in done.stderr


@pytest.mark.ci
def test_the_page_shows_what_the_functions_return(models: dict[str, LoadedModel], folder: Path) -> None:
    pytest.importorskip("gradio")
    client = pytest.importorskip("gradio_client")
    images = {name: demo.embed_folder(loaded, folder) for name, loaded in models.items()}
    blocks = demo.page(models, images)
    _, address, _ = demo.launch(blocks, str(folder), host="127.0.0.1", port=None)
    try:
        page = client.Client(address, verbose=False)
        for name, loaded in models.items():
            for file in ("a.png", "b.jpg"):
                given = client.handle_file(str(folder / file))
                bars, numbers = page.predict(name, given, "\n".join(LABELS), "{c}", api_name="/classify")
                seen = {row["label"]: row["confidence"] for row in bars["confidences"]}
                expected_here = demo.probabilities(loaded, folder / file, LABELS)
                assert seen == pytest.approx(expected_here, abs=1e-7)
                assert numbers["data"] == demo.table([expected_here])
        name, loaded = next(iter(models.items()))
        gallery = page.predict(name, "noise", 3, api_name="/search")
        matches = demo.search(loaded, images[name], "noise", 3)
        assert [item["caption"] for item in gallery] == [f"{match.cosine:.3f}  {match.path.name}" for match in matches]
        *panels, numbers = page.predict(given, "\n".join(LABELS), "{c}", api_name="/compare")
        both = demo.compare(models, folder / "b.jpg", LABELS)
        for bars, expected_here in zip(panels, both.values(), strict=True):
            seen = {row["label"]: row["confidence"] for row in bars["confidences"]}
            assert seen == pytest.approx(expected_here, abs=1e-7)
        assert numbers["data"] == demo.table(list(both.values()))
        with pytest.raises(client.exceptions.AppError, match="typed twice"):
            page.predict(name, given, "a, a", "{c}", api_name="/classify")
    finally:
        blocks.close()
