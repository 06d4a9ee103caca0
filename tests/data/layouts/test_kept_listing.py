"""The list of a folder's images is made once and kept, until one of its folders changes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.layouts import file_rows
from clip_lightning.data.layouts.layout import Layout, build_layout
from tests.support.small_data import jpeg

OLD = 1_000_000_000  # ns, a time long ago


def opened(kind: str, path: Path) -> Layout:
    return build_layout(DataConfig(name="test", kind=kind, path=str(path), index_folder=str(path.parent / "index")))


def names(layout: Layout) -> list[str]:
    return [layout.name_of(k).name for k in range(layout.num_samples)]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Four images with captions in two folders, a fifth without, all unchanged for a long time."""
    path = tmp_path / "photographs"
    for k in range(5):
        file = path / "ab"[k % 2] / f"{k}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(k))
        if k < 4:
            file.with_suffix(".txt").write_text(f"number {k}")
    age(path)
    return path


def age(path: Path) -> None:
    for one in (path, path / "a", path / "b"):
        os.utime(one, ns=(OLD, OLD))


@pytest.fixture
def num_lists(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many tables have been made."""
    made, make = [], file_rows.file_table

    def count(*args: object) -> object:
        made.append(args)
        return make(*args)  # type: ignore[arg-type]

    for module in ("folder", "class_folders"):
        monkeypatch.setattr(f"clip_lightning.data.layouts.{module}.file_table", count)
    return lambda: len(made)


@pytest.mark.parametrize("kind", ["folder", "class_folders"])
def test_a_second_rank_reads_the_list_of_the_first(photographs: Path, num_lists: Callable[[], int], kind: str) -> None:
    first, second = opened(kind, photographs), opened(kind, photographs)
    assert num_lists() == 1
    assert names(first) == names(second)
    assert list(first.problems) == list(second.problems)
    assert first.fingerprint() == second.fingerprint()
    assert [first.captions(k) for k in range(4)] == [second.captions(k) for k in range(4)]


@pytest.mark.parametrize("kind", ["folder", "class_folders"])
def test_a_changed_folder_is_listed_again(photographs: Path, num_lists: Callable[[], int], kind: str) -> None:
    before = opened(kind, photographs)
    (photographs / "b" / "more").mkdir()
    (photographs / "b" / "more" / "9.jpg").write_bytes(jpeg(9))
    (photographs / "b" / "more" / "9.txt").write_text("number 9")
    after = opened(kind, photographs)
    assert num_lists() == 2
    assert names(after) == [*names(before), "b/more/9.jpg"]
    assert after.fingerprint() != before.fingerprint()


def test_a_folder_that_changed_moments_ago_is_not_trusted(photographs: Path, num_lists: Callable[[], int]) -> None:
    (photographs / "a" / "2.txt").unlink()
    assert opened("folder", photographs).num_samples == 3
    stamp = (photographs / "a").stat().st_mtime_ns
    (photographs / "a" / "0.txt").unlink()
    os.utime(photographs / "a", ns=(stamp, stamp))  # as on a file system whose times have a resolution of seconds
    assert opened("folder", photographs).num_samples == 2
    assert num_lists() == 2


def test_another_choice_of_captions_has_a_list_of_its_own(photographs: Path) -> None:
    opened("folder", photographs)
    (photographs / "a" / "0.txt").rename(photographs / "a" / "0.cap")
    age(photographs)
    config = DataConfig(name="test", kind="folder", path=str(photographs), index_folder=str(photographs / "../index"))
    config.caption_keys = ["cap"]
    assert names(build_layout(config)) == ["a/0.jpg"]


def test_a_damaged_list_is_made_again(photographs: Path, num_lists: Callable[[], int]) -> None:
    before = names(opened("folder", photographs))
    (kept,) = (photographs.parent / "index/index").glob("*.arrow")
    for content in (b"", b"ARROW1", kept.read_bytes()[:-100]):
        kept.write_bytes(content)
        assert names(opened("folder", photographs)) == before
    assert num_lists() == 4


def test_a_list_that_cannot_be_kept_is_made_at_every_start(photographs: Path, num_lists: Callable[[], int]) -> None:
    (photographs.parent / "index").write_text("a file in the place of the folder")
    assert names(opened("folder", photographs)) == names(opened("folder", photographs))
    assert num_lists() == 2


def test_classes_that_are_links_to_one_folder_each_have_its_images(photographs: Path) -> None:
    (photographs / "c").symlink_to("a")
    layout = opened("class_folders", photographs)
    assert [name for name in names(layout) if name.startswith("c/")] == ["c/0.jpg", "c/2.jpg", "c/4.jpg"]


@pytest.mark.parametrize("kind", ["folder", "class_folders"])
def test_a_folder_that_is_mounted_later_behind_a_link_is_found(photographs: Path, kind: str) -> None:
    behind = photographs.parent / "mount"
    (photographs / "c").symlink_to(behind)
    age(photographs)
    before = names(opened(kind, photographs))
    behind.mkdir()
    (behind / "9.jpg").write_bytes(jpeg(9))
    (behind / "9.txt").write_text("number 9")
    os.utime(behind, ns=(OLD, OLD))
    assert names(opened(kind, photographs)) == [*before, "c/9.jpg"]
