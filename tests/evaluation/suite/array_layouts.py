"""Small data sets whose images or labels are arrays: each builder writes one and returns the names of its classes."""

import gzip
import pickle
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.evaluation.suite.drawing import draw, write


def pickled(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def rows() -> np.ndarray:
    """Two images [2, 3072], the second with a red plane of 255."""
    images = np.zeros((2, 3072), dtype=np.uint8)
    images[1, :1024] = 255
    return images


def cifar10(root: Path) -> Sequence[str]:
    base = root / "cifar-10-batches-py"
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    pickled(base / "batches.meta", {"label_names": names})
    pickled(base / "test_batch", {"data": rows(), "labels": [3, 0]})
    return ["cat", "airplane"]


def cifar100(root: Path) -> Sequence[str]:
    base = root / "cifar-100-python"
    pickled(base / "meta", {"fine_label_names": ["apple", "aquarium_fish"], "coarse_label_names": ["food"]})
    pickled(base / "test", {"data": rows(), "fine_labels": [1, 0], "coarse_labels": [0, 0]})
    return ["aquarium fish", "apple"]


def fer2013(root: Path) -> Sequence[str]:
    pixels = " ".join(["7"] * 2304)
    text = "emotion, Usage, pixels\n" + "".join(
        f"{code},{usage},{pixels}\n" for code, usage in ((0, "Training"), (6, "PrivateTest"), (3, "PrivateTest"))
    )
    write(root / "fer2013" / "icml_face_data.csv", text)
    return ["neutral", "happy"]


def stanford_cars(root: Path) -> Sequence[str]:
    from scipy.io import savemat

    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    kinds = [("class", "O"), ("fname", "O"), ("bbox_x1", "O")]
    rows = np.array([(2, "00001.jpg", 5), (1, "00002.jpg", 5)], dtype=kinds)
    savemat(base / "cars_test_annos_withlabels.mat", {"annotations": rows})
    draw(base / "cars_test" / "00001.jpg", base / "cars_test" / "00002.jpg")
    return [str(names[1]), str(names[0])]


def flowers102(root: Path) -> Sequence[str]:
    from scipy.io import savemat

    base = root / "flowers-102"
    draw(*(base / "jpg" / f"image_{k:05d}.jpg" for k in (1, 2, 3)))
    savemat(base / "imagelabels.mat", {"labels": np.array([[102, 1, 5]], dtype=np.uint8)})
    savemat(base / "setid.mat", {"trnid": [[2]], "valid": [[2]], "tstid": [[3, 1]]})
    return ["english marigold", "blackberry lily"]


def mnist(root: Path) -> Sequence[str]:
    base = root / "mnist"
    base.mkdir()
    images = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8)
    (base / "t10k-images.idx3-ubyte").write_bytes(struct.pack(">4I", 2051, 2, 28, 28) + images.tobytes())
    labels = struct.pack(">2I", 2049, 2) + bytes([7, 0])
    (base / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return ["7", "0"]


def svhn(root: Path) -> Sequence[str]:
    from scipy.io import savemat

    (root / "svhn").mkdir()
    savemat(root / "svhn" / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[10], [3]])})
    return ["zero", "three"]


def stl10(root: Path) -> Sequence[str]:
    base = root / "stl10_binary"
    write(base / "class_names.txt", "airplane\nbird\ncar\n")
    image = np.zeros((1, 3, 96, 96), dtype=np.uint8)
    image[:, :, :10] = 255  # the first ten columns, since height and width are exchanged
    (base / "test_X.bin").write_bytes(np.concatenate([image, image]).tobytes())
    (base / "test_y.bin").write_bytes(bytes([3, 1]))
    return ["car", "airplane"]


def pcam(root: Path) -> Sequence[str]:
    import h5py

    (root / "pcam").mkdir()
    for key, values in (("x", np.zeros((2, 96, 96, 3), np.uint8)), ("y", np.array([1, 0]).reshape(2, 1, 1, 1))):
        with h5py.File(root / "pcam" / f"camelyonpatch_level_2_split_test_{key}.h5", "w") as file:
            file[key] = values
    return ["lymph node containing metastatic tumor tissue", "lymph node"]


def svhn_numbers(root: Path) -> Sequence[str]:
    import h5py

    base = root / "svhn" / "test"
    base.mkdir(parents=True)
    numbers = [
        ([5, 1, 8], [9.0, 2.0, 30.0]),
        ([7], [3.0]),
        ([2, 10, 1], [1.0, 8.0, 4.0]),
    ]  # digits and their left edges
    with h5py.File(base / "digitStruct.mat", "w") as file:
        cells = file.create_group("#refs#")
        for field in ("name", "bbox"):
            file.create_dataset(f"digitStruct/{field}", (len(numbers), 1), dtype=h5py.ref_dtype)
        for k, (digits, lefts) in enumerate(numbers):
            name = cells.create_dataset(f"name{k}", data=np.array([[ord(c)] for c in f"{k + 1}.png"], np.uint16))
            box = cells.create_group(f"box{k}")
            for field, values in (("label", digits), ("left", lefts)):
                if len(values) == 1:
                    box.create_dataset(field, data=np.array([[float(values[0])]]))
                    continue
                column = box.create_dataset(field, (len(values), 1), dtype=h5py.ref_dtype)
                for j, value in enumerate(values):
                    column[j, 0] = cells.create_dataset(f"{field}{k}{j}", data=np.array([[float(value)]])).ref
            file["digitStruct/name"][k, 0], file["digitStruct/bbox"][k, 0] = name.ref, box.ref
            draw(base / f"{k + 1}.png")
    return ["158", "7", "210"]


ARRAYS: dict[str, Callable[[Path], Sequence[str] | Sequence[set[str]]]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fer2013": fer2013,
    "stanford_cars": stanford_cars,
    "flowers102": flowers102,
    "mnist": mnist,
    "svhn": svhn,
    "stl10": stl10,
    "pcam": pcam,
    "svhn_numbers": svhn_numbers,
}
NEEDS_H5PY = ("pcam", "svhn_numbers")
