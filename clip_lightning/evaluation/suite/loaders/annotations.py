"""Test sets whose labels are in annotation files of their own: MATLAB structures, lists per class, scenes, JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clip_lightning.errors import DataError
from clip_lightning.evaluation.prompts import read_lines
from clip_lightning.evaluation.suite.loaders.found import Found, index_of, listed, listing, present


def flowers(folder: Path, keys: Sequence[str] | None, *, labels: str, ids: str, field: str, image: str) -> Found:
    """Flowers-102: labels 1 .. 102 of all images, and the ids of the split; the test split is the large one."""
    from scipy.io import loadmat

    assert keys is not None
    numbers = loadmat(folder / labels)["labels"].reshape(-1).astype(np.int64)
    numbers_of = loadmat(folder / ids)[field].reshape(-1).astype(np.int64)
    paths = [folder / image.format(number=int(number)) for number in numbers_of]
    return listed(paths, numbers[numbers_of - 1] - 1, keys)


def cars(folder: Path, keys: Sequence[str] | None, *, annotations: Sequence[str], meta: str, images_at: str) -> Found:
    """Stanford Cars: fields by name, since the files with and without labels order them differently."""
    from scipy.io import loadmat

    names = [str(name) for name in loadmat(folder / meta, squeeze_me=True)["class_names"]]
    path = next(folder / name for name in annotations if (folder / name).is_file())
    rows = loadmat(path, squeeze_me=True)["annotations"]
    if "class" not in (rows.dtype.names or ()):
        raise DataError(f"{path} has no classes; copy cars_test_annos_withlabels.mat beside the folder devkit.")
    labels = rows["class"].astype(np.int64) - 1
    return listed([folder / images_at / str(name) for name in rows["fname"]], labels, names, names=names)


def voc(folder: Path, keys: Sequence[str] | None, *, lists: str, split_name: str, images_at: str) -> Found:
    """VOC 2007: a list per class with 1, -1, or 0 where an image has the class in difficult objects only.

    An image has any number of classes: labels are bool [n, 20]. A 0 counts as present, since the object is in the
    image; what the paper did with it is not stated (openai/CLIP issue 75).
    """
    assert keys is not None
    rows: dict[str, list[bool]] = {}
    for key in keys:
        for line in read_lines(folder / lists / f"{key}_{split_name}.txt"):
            name, value = line.split()
            rows.setdefault(name, []).append(int(value) >= 0)
    wrong = [name for name, row in rows.items() if len(row) != len(keys)]
    if wrong:
        raise DataError(f"{folder / lists}: image {wrong[0]} is not in the lists of all {len(keys)} classes.")
    paths = [folder / images_at / f"{name}.jpg" for name in rows]
    return listed(paths, np.array(list(rows.values()), dtype=bool), keys)


def imagenet_devkit(folder: Path, keys: Sequence[str] | None, *, truth: str, synsets: str, image: str) -> Found:
    """Flat validation images of ILSVRC with the ground truth of the devkit.

    The truth has one ILSVRC id per line, which is an index of the devkit's own order (1 is kit_fox), not of sorted
    synsets; `synsets` maps it: `map_clsloc.txt` (synset, id, name) or `meta.mat` (of whose synsets those without
    children are classes).
    """
    assert keys is not None
    path = folder / synsets
    by_id: dict[int, str] = {}
    if path.suffix == ".mat":
        from scipy.io import loadmat

        for row in loadmat(path, squeeze_me=True, struct_as_record=False)["synsets"]:
            if not int(getattr(row, "num_children", 0)):
                by_id[int(row.ILSVRC2012_ID)] = str(row.WNID)
    else:
        for line in read_lines(path):
            wnid, number, _ = line.split(" ", 2)
            by_id[int(number)] = wnid
    wnids = [by_id[int(line)] for line in read_lines(folder / truth)]
    paths = [folder / image.format(number=k + 1) for k in range(len(wnids))]
    return listed(paths, index_of(keys, wnids, f"{path}: the synset"), keys)


def objectnet(folder: Path, keys: Sequence[str] | None, *, images_at: str, mappings: str, crop: int = 2) -> Found:
    """The folders of ObjectNet whose class is in ImageNet, cropped of the red border.

    `folder_to_objectnet_label.json` and `objectnet_to_imagenet_1k.json` map folders to labels and labels to ImageNet
    classes ("a, synonym; b": `;` separates classes); `imagenet_to_label_2012_v2` and `pytorch_to_imagenet_2012_id.json`
    map those to indices of sorted synsets, which fills `allowed`, bool [1000, 113].
    """
    base = folder / mappings
    label_of = json.loads((base / "folder_to_objectnet_label.json").read_text(encoding="utf-8"))
    to_imagenet = json.loads((base / "objectnet_to_imagenet_1k.json").read_text(encoding="utf-8"))
    sorted_index = json.loads((base / "pytorch_to_imagenet_2012_id.json").read_text(encoding="utf-8"))
    index_of_row = {row: int(index) for index, row in sorted_index.items()}
    imagenet_rows = {line: row for row, line in enumerate(read_lines(base / "imagenet_to_label_2012_v2"))}
    keys = sorted(name for name, label in label_of.items() if label in to_imagenet)
    names = [label_of[key] for key in keys]
    allowed = np.zeros((len(index_of_row), len(keys)), dtype=bool)
    for column, name in enumerate(names):
        for one in to_imagenet[name].split("; "):
            allowed[index_of_row[imagenet_rows[one.strip()]], column] = True
    paths: list[Path] = []
    labels: list[int] = []
    for label, key in enumerate(keys):
        files = listing(folder / images_at / key) if (folder / images_at / key).is_dir() else []
        paths += files
        labels += [label] * len(files)
    return listed(paths, labels, keys, names=names, allowed=allowed, crop=crop)


def kitti(folder: Path, keys: Sequence[str] | None, *, images_at: str, labels: str, ids: str = "") -> Found:
    """Distance of the closest vehicle in KITTI's object images, VTAB's task.

    The label is of the least z (column 14) over cars, vans and trucks: below 8 m 0, below 20 m 1, further 2, and 3
    without a vehicle (Zhai et al. 2019, appendix; `DontCare` rows have z = -1000 and no vehicle's name).

    Args:
        folder: of the data set.
        keys: the four classes.
        images_at: folder of the images.
        labels: folder of the label files.
        ids: the test images, one id per line, in a file of the package; without it all images.
    """
    assert keys is not None
    if ids:
        names = [line for line in read_lines(Path(__file__).parents[1] / ids) if not line.startswith("#")]
    else:
        names = sorted(path.stem for path in (folder / labels).glob("*.txt"))
    paths = [folder / images_at / f"{name}.png" for name in names]
    there = present(paths)
    found = [path for path, is_there in zip(paths, there, strict=True) if is_there]
    values = [_closest(folder / labels / f"{path.stem}.txt") for path in found]
    opened = listed(found, values, keys)
    return Found(opened.labels, opened.read, keys, num_listed=len(names))


def _closest(path: Path) -> int:
    if not path.is_file():
        raise DataError(f"{path} is missing, and its image is there; unpack the labels again.")
    rows = [line.split() for line in read_lines(path)]
    distances = [float(row[13]) for row in rows if row[0] in ("Car", "Van", "Truck")]
    return 3 if not distances else int(np.searchsorted((8.0, 20.0), min(distances), side="right"))


def clevr(folder: Path, keys: Sequence[str] | None, *, scenes: str, images_at: str, least: int) -> Found:
    """CLEVR's scenes: the label is the number of objects, from `least` (VTAB's count_all)."""
    assert keys is not None
    content = json.loads((folder / scenes).read_text(encoding="utf-8"))["scenes"]
    labels = [len(scene["objects"]) - least for scene in content]
    outside = [
        scene["image_filename"] for scene, label in zip(content, labels, strict=True) if not 0 <= label < len(keys)
    ]
    if outside:
        raise DataError(
            f"{folder / scenes}: {outside[0]} has a number of objects that is no class; copy the file again."
        )
    return listed([folder / images_at / scene["image_filename"] for scene in content], labels, keys)
