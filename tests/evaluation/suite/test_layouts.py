"""Every data set of the paper opens from its official layout: labels, names, metric, images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError
from clip_lightning.evaluation.suite import PAPER36, TABLE11_ONLY
from clip_lightning.evaluation.suite.entry import load_entry
from clip_lightning.evaluation.tasks import ZeroShotTask, build_task
from tests.evaluation.suite.array_layouts import NEEDS_H5PY
from tests.evaluation.suite.drawing import write
from tests.evaluation.suite.layouts import BUILDERS
from tests.evaluation.suite.real_layouts import EVALSETS


def built(name: str, root: Path) -> tuple[ZeroShotTask, Sequence[str] | Sequence[set[str]]]:
    if name in NEEDS_H5PY:
        pytest.importorskip("h5py")
    expected = BUILDERS[name](root)
    return build_task(name, root), expected


def classes_of(task: ZeroShotTask) -> list[str] | list[set[str]]:
    if task.labels.ndim == 2:
        return [{task.classnames[k] for k in np.flatnonzero(row)} for row in task.labels]
    return [task.classnames[label] for label in task.labels]


def test_every_set_of_the_paper_has_a_fixture() -> None:
    assert set(BUILDERS) >= {*PAPER36, *TABLE11_ONLY}
    assert len(PAPER36) == 36


@pytest.mark.parametrize("name", BUILDERS)
def test_a_set_opens_from_its_official_layout(name: str, tmp_path: Path) -> None:
    task, expected = built(name, tmp_path)
    found = classes_of(task)
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))  # type: ignore[type-var]
    if task.labels.ndim == 1 and name not in ("imagenet_v2", "caltech101", "objectnet"):
        assert sorted(map(str, found)) == sorted(map(str, expected))
    assert (task.metric, task.name) == (load_entry(name).metric, name)
    for k in range(task.num_samples):
        assert task.image(k, 8).shape == (3, 8, 8)
    assert task.names_from
    assert set(task.prompt_sets) - {"seven"} == {"contextless", "single"}
    assert ("seven" in task.prompt_sets) == (len(task.templates) == 80)
    assert task.images_id


@pytest.mark.parametrize("name", ["sun397", "fgvc_aircraft", "flowers102", "ayahoo", "hateful_memes", "kinetics700"])
def test_labels_are_in_the_order_of_the_list(name: str, tmp_path: Path) -> None:
    task, expected = built(name, tmp_path)
    assert classes_of(task) == list(expected)


def test_pixels_of_arrays_are_upright(tmp_path: Path) -> None:
    task, _ = built("stl10", tmp_path)
    image = task.read(0)
    assert isinstance(image, np.ndarray)
    assert image[:, :10].min() == 255  # columns
    assert image[:, 10:].max() == 0
    red, _ = built("cifar10", tmp_path)
    assert np.asarray(red.read(1))[0, 0].tolist() == [255, 0, 0]


def test_the_red_border_of_objectnet_is_cut_off(tmp_path: Path) -> None:
    task, _ = built("objectnet", tmp_path)
    image = np.asarray(task.read(0))
    assert image.shape == (4, 4, 3)
    assert abs(image.astype(int) - 128).max() <= 2


def test_one_class_of_objectnet_is_several_of_imagenet(tmp_path: Path) -> None:
    task, _ = built("objectnet", tmp_path)
    static = build_task("objectnet_static", tmp_path)
    assert static.allowed is not None
    assert len(static.classnames) == 1000
    # Rows of the official list: 0 digital clock, 1 banana, 2 analog clock; the index of a row is ten less.
    assert [np.flatnonzero(column).tolist() for column in static.allowed.T] == [[990, 992], [991]]
    assert (static.images_id, static.labels.tolist()) == (task.images_id, task.labels.tolist())


def test_frames_around_an_anchor_are_its_group(tmp_path: Path) -> None:
    vid, _ = built("imagenet_vid", tmp_path)
    assert vid.groups is not None
    assert vid.groups.tolist() == [0, 0, 1]
    assert [sorted(np.flatnonzero(row)) for row in vid.labels] == [[0, 2], [0], [1]]  # each frame has its own
    ytbb, _ = built("youtube_bb", tmp_path)
    assert ytbb.groups is not None
    assert ytbb.groups.tolist() == [0, 0, 1]  # one frame is too far, one is not similar, one anchor is unsure
    assert ytbb.labels[0].tolist() == ytbb.labels[1].tolist()  # the anchor's labels hold for its frames
    assert "none" not in ytbb.classnames
    static = build_task("youtube_bb_static", tmp_path)
    assert static.allowed is not None
    assert np.flatnonzero(static.allowed[:, 0]).tolist() == [981, 982]
    assert not static.allowed[:, 1].any()  # bird has no entry in the map


def test_an_anchor_without_its_image_takes_its_group_with_it(tmp_path: Path) -> None:
    built("youtube_bb", tmp_path)
    (tmp_path / "ytbb-robust" / "a_-b_100" / "frame-50.jpg").unlink()
    task = build_task("youtube_bb", tmp_path)
    assert classes_of(task) == [{"car"}]


def test_ytbb_without_reviews_evaluates_anchors_and_says_so(tmp_path: Path) -> None:
    built("youtube_bb", tmp_path)
    (tmp_path / "ytbb-robust" / "ytbb-robust_metadata" / "pmk_labels.json").unlink()
    task = build_task("youtube_bb", tmp_path)
    assert (task.num_samples, task.split) == (2, "anchors")
    assert "pm10 is pm0" in task.stand_in


@pytest.mark.parametrize("clip", ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01", "BaseballPitch/v_BaseballPitch_g01_c01"])
def test_the_middle_frame_of_a_real_clip(clip: str, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    source = EVALSETS / "ucf101" / "UCF-101" / f"{clip}.avi"
    if not source.is_file():
        pytest.skip("the clips are not beside this checkout")
    write(tmp_path / "ucf101" / "ucfTrainTestlist" / "classInd.txt", f"1 {clip.split('/')[0]}\r\n")
    write(tmp_path / "ucf101" / "ucfTrainTestlist" / "testlist01.txt", f"{clip}.avi\n")
    path = tmp_path / "ucf101" / "UCF-101" / f"{clip}.avi"
    path.parent.mkdir(parents=True)
    path.write_bytes(source.read_bytes())
    image = np.asarray(build_task("ucf101", tmp_path).read(0))
    with av.open(str(source)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert image.shape == (240, 320, 3)
    assert np.array_equal(image, frames[len(frames) // 2])
    path.write_bytes(source.read_bytes()[:5000])
    with pytest.raises((BadSample, DataError)):
        build_task("ucf101", tmp_path).image(0, 8)


def test_videos_without_a_decoder_say_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built("ucf101", tmp_path)
    for path in (tmp_path / "ucf101" / "UCF-101").rglob("*.jpg"):
        path.rename(path.with_suffix(".avi"))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(DataError, match=r"holds videos, which the package av decodes; install it \(pip install av\)"):
        build_task("ucf101", tmp_path)
