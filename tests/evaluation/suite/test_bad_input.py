"""Faults of data sets: one sentence each, and the number of images is the number that is there."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.suite.loaders.arrays import load_plain
from clip_lightning.evaluation.suite.open import state_of
from clip_lightning.evaluation.tasks import ZeroShotTask, build_task, main, warnings_of
from tests.evaluation.suite.drawing import draw, drawn, write
from tests.evaluation.suite.layouts import BUILDERS
from tests.support.small_folder import encoded, write_tar

Change = Callable[[Path], object]


def removed(name: str) -> Change:
    return lambda root: (root / name).unlink()


def written(name: str, text: str) -> Change:
    return lambda root: write(root / name, text)


FAULTS: dict[str, tuple[str, Change, str]] = {
    "a folder that is no class": (
        "country211",
        lambda root: draw(root / "country211" / "test" / "QQ" / "1.jpg"),
        r"the folder 'QQ' is not in the list of 211 classes; rename or remove",
    ),
    "several folders that are no class": (
        "eurosat",
        lambda root: draw(*(root / "EuroSAT_RGB" / f"x{k}" / "1.jpg" for k in range(5))),
        r"the folder 'x0', 'x1', 'x2', ... are not in the list of 10 classes",
    ),
    "a number that is no class": (
        "imagenet_v2",
        lambda root: draw(root / "imagenetv2-matched-frequency-format-val" / "1000" / "1.jpeg"),
        r"the folder '1000' is not in the list of 1000 classes",
    ),
    "a class in a list that is no class": (
        "fgvc_aircraft",
        written("fgvc-aircraft-2013b/data/images_variant_test.txt", "0747566 Concorde\n"),
        r"the class 'Concorde' is not in the list of 3 classes",
    ),
    "a header in a class list": (
        "fgvc_aircraft",
        written("fgvc-aircraft-2013b/data/images_variant_test.txt", "0747566 F/A-18\n?? Image\n"),
        r"the line '\?\? Image' is not of the data set's format",
    ),
    "a label out of range": (
        "hateful_memes",
        written("hateful_memes/dev_seen.jsonl", '{"img":"img/42953.png","label":2}\n'),
        r"the label 2 is out of range; labels go from 0 to 1",
    ),
    "a label of an array out of range": (
        "stl10",
        lambda root: (root / "stl10_binary" / "test_y.bin").write_bytes(bytes([9, 1])),
        r"image 0 has label 8, and labels go from 0 to 2",
    ),
    "fewer labels than images": (
        "stl10",
        lambda root: (root / "stl10_binary" / "test_y.bin").write_bytes(bytes([1])),
        r"2 images and 1 labels; copy the files again",
    ),
    "an empty list": ("food101", written("food-101/meta/test.txt", ""), r"test.txt lists no image"),
    "no row of the split": (
        "fer2013",
        written("fer2013/icml_face_data.csv", "emotion, Usage, pixels\n0,Training,1 2\n"),
        r"has no row with Usage PrivateTest",
    ),
    "a truncated array": (
        "mnist",
        lambda root: (root / "mnist" / "t10k-images.idx3-ubyte").write_bytes(
            (root / "mnist" / "t10k-images.idx3-ubyte").read_bytes()[:500]
        ),
        r"announces 2 items and ends early; copy it again",
    ),
    "class names that do not match the labels": (
        "gtsrb",
        written("gtsrb/classnames.txt", "stop\ngo\n"),
        r"gtsrb/classnames.txt has 2 class names and the data set has 43 classes; write one name per line",
    ),
    "a template without a placeholder": (
        "gtsrb",
        written("gtsrb/templates.txt", "a {c}\na sign\n"),
        r"the template 'a sign' has no \{c\}, which the class name replaces",
    ),
    "class names that are not UTF-8": (
        "gtsrb",
        lambda root: (root / "gtsrb" / "classnames.txt").write_bytes(b"stop\n\xff\n"),
        r"classnames.txt is not UTF-8 text \(byte 5\)",
    ),
    "labels without classes": (
        "stanford_cars",
        lambda root: without_classes(root),
        r"has no classes; copy cars_test_annos_withlabels.mat beside the folder devkit",
    ),
    "an image that is in some lists only": (
        "voc2007",
        written("VOCdevkit/VOC2007/ImageSets/Main/dog_test.txt", "000001 1\n"),
        r"image 000002 is not in the lists of all 20 classes",
    ),
    "an object count that is no class": (
        "clevr_count",
        written(
            "CLEVR_v1.0/scenes/CLEVR_val_scenes.json",
            '{"scenes": [{"image_filename": "CLEVR_val_000000.png", "objects": [1, 2]}]}',
        ),
        r"CLEVR_val_000000.png has a number of objects that is no class",
    ),
    "an image without its label": (
        "kitti_distance",
        removed("kitti/training/label_2/000024.txt"),
        r"000024.txt is missing, and its image is there",
    ),
    "a file of another layout": (
        "clevr_count",
        written("CLEVR_v1.0/scenes/CLEVR_val_scenes.json", "[]"),
        r"is not in the layout of CLEVR Count \(TypeError.*\); unpack it again",
    ),
}


def without_classes(root: Path) -> None:
    from scipy.io import savemat

    rows = np.array([("00001.jpg", 5)], dtype=[("fname", "O"), ("bbox_x1", "O")])
    savemat(root / "stanford_cars" / "cars_test_annos_withlabels.mat", {"annotations": rows})


@pytest.mark.parametrize(("name", "change", "sentence"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_sentence(
    name: str, change: Change, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BUILDERS[name](tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=sentence) as caught:
        build_task(name, tmp_path)
    assert all(problem.endswith(".") and "\n" not in problem for problem in caught.value.problems)
    assert main(["--root", str(tmp_path), name]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:2] == [name, "broken"]


@pytest.mark.parametrize("name", ["food101", "gtsrb", "voc2007", "imagenet_vid", "kinetics700", "eurosat"])
def test_a_truncated_image_is_a_bad_sample_and_the_others_are_read(name: str, tmp_path: Path) -> None:
    BUILDERS[name](tmp_path)
    path = min(path for path in tmp_path.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".ppm"))
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 3])
    task = build_task(name, tmp_path)
    bad = 0
    for k in range(task.num_samples):
        try:
            task.image(k, 8)
        except (BadSample, DataError):
            bad += 1
    assert bad == 1 < task.num_samples


def test_an_image_that_vanishes_or_is_empty_is_a_bad_sample(tmp_path: Path) -> None:
    BUILDERS["food101"](tmp_path)
    task = build_task("food101", tmp_path)
    images = tmp_path / "food-101" / "images"
    (images / "baklava" / "1.jpg").unlink()
    (images / "apple_pie" / "2.jpg").write_bytes(b"")
    with pytest.raises(BadSample, match="missing image"):
        task.read(0)
    with pytest.raises(BadSample, match="empty image"):
        task.read(1)
    assert task.read(2) == drawn("jpg")


def test_a_truncated_image_in_a_tar_is_a_bad_sample(tmp_path: Path) -> None:
    folder = tmp_path / "wds_mnist"
    (folder / "test").mkdir(parents=True)
    write_tar(folder / "test" / "0.tar", {"a.png": encoded(1)[:20], "a.cls": b"1", "b.png": encoded(2), "b.cls": b"2"})
    task = build_task("mnist", tmp_path)
    assert task.num_samples == 2
    with pytest.raises(DataError, match="image 0 is damaged"):
        task.image(0, 6)
    assert task.image(1, 6).shape == (3, 6, 6)


def test_fewer_images_than_the_set_has_are_counted(tmp_path: Path) -> None:
    BUILDERS["birdsnap"](tmp_path)
    task = build_task("birdsnap", tmp_path)
    assert (task.num_samples, task.num_expected) == (2, 2443)
    assert state_of("birdsnap", tmp_path).sentence.startswith("2 of 2,443 images found; download birdsnap.tgz")


def test_no_image_at_all_is_missing(tmp_path: Path) -> None:
    BUILDERS["food101"](tmp_path)
    for path in tmp_path.rglob("*.jpg"):
        path.unlink()
    state = state_of("food101", tmp_path)
    assert state.status == "missing"
    assert state.sentence.startswith("none of the 3 listed images is present, such as ")


def test_a_missing_class_folder_moves_no_label(tmp_path: Path) -> None:
    draw(tmp_path / "eurosat" / "2750" / "River" / "River_1.jpg")
    draw(tmp_path / "eurosat" / "2750" / "AnnualCrop" / "AnnualCrop_1.jpg")
    task = build_task("eurosat", tmp_path)
    assert [task.classnames[k] for k in task.labels] == ["annual crop land", "river"]


def test_case_and_separators_of_folders_do_not_matter(tmp_path: Path) -> None:
    BUILDERS["resisc45"](tmp_path)
    (tmp_path / "NWPU-RESISC45" / "thermal_power_station").rename(tmp_path / "NWPU-RESISC45" / "Thermal Power-Station")
    task = build_task("resisc45", tmp_path)
    assert sorted(task.classnames[k] for k in task.labels) == ["airplane", "thermal power station"]


def test_duplicate_class_names_are_warned_of(tmp_path: Path) -> None:
    BUILDERS["gtsrb"](tmp_path)
    write(tmp_path / "gtsrb" / "classnames.txt", "\n".join(["Stop", *(f"sign {k}" for k in range(41)), "stop"]))
    task = build_task("gtsrb", tmp_path)
    assert warnings_of([task]) == [
        "warning: task gtsrb: classes 0, 42 are all called 'Stop', so their images share the hits; give each class a "
        "name of its own"
    ]


def test_bom_and_crlf_in_class_files(tmp_path: Path) -> None:
    BUILDERS["food101"](tmp_path)
    meta = tmp_path / "food-101" / "meta"
    for name in ("classes.txt", "test.txt"):
        path = meta / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    task = build_task("food101", tmp_path)
    assert [task.classnames[k] for k in task.labels] == ["baklava", "apple pie", "apple pie"]


def test_labels_of_several_classes_have_the_shape_of_the_names() -> None:
    with pytest.raises(
        DataError, match=r"labels of several classes per image are bool \[n, 2\], and these are int64 \[1, 2\]"
    ):
        ZeroShotTask("x", ["a", "b"], ["{c}"], np.zeros((1, 2), dtype=np.int64), lambda _: b"")
    with pytest.raises(DataError, match="the template 'a photo' has no"):
        ZeroShotTask("x", ["a"], ["{c}"], np.zeros(1, np.int64), lambda _: b"", prompt_sets={"other": ["a photo"]})


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must not be printed",))


def test_a_pickle_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({"data": Harmful()}))
    with pytest.raises(DataError, match="is no plain pickle of the data set"):
        load_plain(path)
    path.write_bytes(b"\x80\x02}")
    with pytest.raises(DataError, match="copy it again"):
        load_plain(path)
    assert not capsys.readouterr().out


def test_the_command_lists_every_set_with_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BUILDERS["mnist"](tmp_path)
    BUILDERS["sun723"](tmp_path)
    assert main(["--root", str(tmp_path), "--suite", "paper36"]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in printed[2:38]}
    assert len(rows) == 36
    assert rows["mnist"].split() == ["mnist", "ready", "paper", "mnist", "acc1", "10", "2", "10,000"]
    assert "missing" in rows["gtsrb"]
    assert "licence needed" in rows["imagenet"]
    assert any(line.startswith("mnist: 2 of 10,000 images found; download t10k-images") for line in printed)
    assert any(line.startswith("imagenet: ImageNet (imagenet) is not in") and "register at" in line for line in printed)
    assert any(line.startswith("sun723 (stand-in): The paper's 723 classes") for line in printed)
    assert printed[-1] == "31 missing, 2 ready, 3 licence needed"


def test_the_command_refuses_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown task 'mnits'; did you mean mnist"):
        main(["--root", str(tmp_path), "mnits"])


def test_names_needed_is_a_status(tmp_path: Path) -> None:
    folder = tmp_path / "wds_wilds-iwildcam_test"
    (folder / "test").mkdir(parents=True)
    write_tar(folder / "test" / "0.tar", {"a.png": encoded(1), "a.cls": b"1"})
    state = state_of("iwildcam", tmp_path)
    assert state.status == "names needed"
    assert "write one class name per line, in the order of the labels, to " in state.sentence
