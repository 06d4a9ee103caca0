"""Images in one folder per class: their prompts, and what is refused."""

from pathlib import Path

import pytest
from PIL import Image

from clip_lightning.config import compose
from clip_lightning.data.layouts.layout import Layout, build_layout
from clip_lightning.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, name in enumerate(["tabby_cat/1.jpg", "tabby_cat/more/2.png", "n02084071/3.JPG", ".cache/4.jpg"]):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, 0, 0)).save(file, format="PNG")
    return tmp_path


def opened(folder: Path) -> Layout:
    config = compose.load("train", ["data=class_folders", f"data.path={folder}"], check=False)
    return build_layout(config.data)


def test_captions_are_prompts_with_the_name_of_the_folder(folder: Path) -> None:
    layout = opened(folder)
    found = {layout.name_of(k).name: layout.read(k).captions for k in range(layout.num_samples)}
    assert found == {
        "n02084071/3.JPG": ["a photo of a n02084071."],
        "tabby_cat/1.jpg": ["a photo of a tabby cat."],
        "tabby_cat/more/2.png": ["a photo of a tabby cat."],
    }


@pytest.mark.slow
def test_names_and_templates_come_from_files(folder: Path) -> None:
    before = opened(folder).fingerprint()
    (folder / "classnames.tsv").write_bytes(b"\xef\xbb\xbfn02084071\tdog {c}\r\n")
    (folder / "templates.txt").write_text("a {c}\n\nmany {c}.\n")
    layout = opened(folder)
    assert layout.captions(0) == ["a dog {c}", "many dog {c}."]
    assert layout.captions(1) == ["a tabby cat", "many tabby cat."]
    assert layout.fingerprint() != before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("templates.txt", "a photo", "'a photo' has no {c}"),
        ("classnames.tsv", "n02084071\tdog\ncat\tcat\n", "line 2: there is no folder cat"),
        ("classnames.tsv", "n02084071 dog\n", "line 1: it needs a folder, a tab and a name"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(folder: Path, file: str, content: str, reason: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=reason):
        opened(folder)


def test_a_class_without_images_is_refused(folder: Path) -> None:
    (folder / "zebra").mkdir()
    with pytest.raises(DataError, match=r"1 of 3 class folders hold no image \(zebra\)"):
        opened(folder)


def test_links_are_followed_and_other_formats_are_counted(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.new("RGB", (8, 8)).save(elsewhere / "5.png")
    (folder / "tabby_cat" / "linked").symlink_to(elsewhere)
    (folder / "tabby_cat" / "6.tiff").write_bytes(b"II*")
    layout = opened(folder)
    assert "tabby_cat/linked/5.png" in [layout.name_of(k).name for k in range(layout.num_samples)]
    assert [(problem.name, problem.cause, problem.num) for problem in layout.problems] == [
        ("tabby_cat/6.tiff", "unknown extension", 1)
    ]
