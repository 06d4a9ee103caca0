"""Test sets whose images are arrays in one file: pickles, IDX, binary, MATLAB, HDF5, pixels as text."""

import csv
import gzip
import importlib.util
import io
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError
from clip_lightning.evaluation.prompts import read_lines
from clip_lightning.evaluation.suite.loaders.found import Found, Image, Rows, listed

_PLAIN = {  # what a pickled array of numbers needs, and nothing that runs code
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how Python 3 writes bytes in protocol 2
}


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, text, numbers and arrays only; any other global is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _PLAIN[module, name]


def load_plain(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle of plain values, of Python 2 too. Raises DataError where it holds anything else."""
    try:
        content = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises errors of any kind
        raise DataError(f"{path} is no plain pickle of the data set ({error}); copy it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no plain pickle of the data set; copy it again.")
    return content


def cifar(folder: Path, keys: Sequence[str] | None, *, batch: str, meta: str, names: str, labels: str) -> Found:
    """CIFAR's Python version: rows of 3,072 bytes, the red plane first. Keys are the names of the meta file."""
    content, classes = load_plain(folder / batch), load_plain(folder / meta)[names]
    images = np.asarray(content["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _rows(images, content[labels], classes, classes, folder / batch)


def mnist(
    folder: Path, keys: Sequence[str] | None, *, images_files: Sequence[str], labels_files: Sequence[str]
) -> Found:
    """IDX files, gzipped or not; several spellings of their names are tried."""
    assert keys is not None
    return _rows(_idx(folder, images_files, 3), _idx(folder, labels_files, 1), keys, (), folder)


def _idx(folder: Path, names: Sequence[str], num_axes: int) -> np.ndarray:
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has none of {', '.join(names)}; copy the files there.")
    content = path.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    header = 4 + 4 * num_axes
    if len(content) < header or struct.unpack(">I", content[:4])[0] != 2048 + num_axes:
        raise DataError(f"{path} is no IDX file of {num_axes} axes; copy it again.")
    shape = struct.unpack(f">{num_axes}I", content[4:header])
    values = np.frombuffer(content, np.uint8, offset=header)
    if values.size != np.prod(shape):
        raise DataError(f"{path} announces {shape[0]:,} items and ends early; copy it again.")
    return values.reshape(shape)


def stl10(folder: Path, keys: Sequence[str] | None, *, images_file: str, labels: str, classes: str) -> Found:
    """Binary files: uint8 [n, 3, 96, 96] with height and width exchanged, labels from 1."""
    size = 3 * 96 * 96
    path = folder / images_file
    if not path.stat().st_size or path.stat().st_size % size:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes, no multiple of {size:,}; copy it again.")
    pixels = np.memmap(path, np.uint8, "r").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
    names = read_lines(folder / classes)
    numbers = np.fromfile(folder / labels, np.uint8).astype(np.int64) - 1
    return _rows(pixels, numbers, names, names, path)


def svhn_digits(folder: Path, keys: Sequence[str] | None, *, file: str) -> Found:
    """The cropped digits: X [32, 32, 3, n], y 1 .. 10 with 10 for the digit 0."""
    from scipy.io import loadmat

    assert keys is not None
    content = loadmat(folder / file)
    return _rows(content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1) % 10, keys, (), folder / file)


def fer2013(folder: Path, keys: Sequence[str] | None, *, files: Sequence[str], usage: Sequence[str]) -> Found:
    """Kaggle's csv: a row per face, 2,304 grey values as text; the order of the columns differs between copies."""
    assert keys is not None
    path = next((folder / name for name in files if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has none of {', '.join(files)}; copy the file there.")
    labels, faces = [], []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for row in reader:
            if (row.get("Usage") or "").strip() in usage:
                faces.append(np.fromstring(row["pixels"], dtype=np.uint8, sep=" "))
                labels.append(int(row["emotion"]))
    if not faces:
        raise DataError(f"{path} has no row with Usage {' or '.join(usage)}; copy the whole file.")
    return _rows(np.stack(faces).reshape(-1, 48, 48), labels, keys, (), path)


def _rows(images: np.ndarray, labels: Any, keys: Sequence[str], names: Sequence[str], path: Path) -> Found:
    numbers = np.asarray(labels, dtype=np.int64)
    if len(images) != len(numbers):
        raise DataError(f"{path}: {len(images):,} images and {len(numbers):,} labels; copy the files again.")
    return Found(numbers, Rows(images), keys, names, num_listed=len(numbers))


def needs_h5py(path: Path) -> None:
    """Raises DataError where HDF5 cannot be read."""
    if importlib.util.find_spec("h5py") is None:
        raise DataError(f"{path} is an HDF5 file, which the package h5py reads; install it: pip install h5py.")


class _H5Images:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._images: Any = None

    def __call__(self, k: int) -> Image:
        import h5py

        if self._images is None:
            self._images = h5py.File(self.path, "r")["x"]
        try:
            return np.asarray(self._images[k], dtype=np.uint8)
        except OSError as error:
            raise BadSample("damaged image", f"{self.path.name}: {error}") from error


def pcam(folder: Path, keys: Sequence[str] | None, *, images_file: str, labels: str) -> Found:
    """PatchCamelyon's HDF5 files, gunzipped: `x` uint8 [n, 96, 96, 3], `y` [n, 1, 1, 1]."""
    needs_h5py(folder / images_file)
    import h5py

    assert keys is not None
    with h5py.File(folder / labels, "r") as file:
        numbers = np.asarray(file["y"]).reshape(-1).astype(np.int64)
    return Found(numbers, _H5Images(folder / images_file), keys, num_listed=len(numbers))


def svhn_numbers(folder: Path, keys: Sequence[str] | None, *, struct_file: str) -> Found:
    """House numbers as wholes: `digitStruct.mat` (HDF5) lists the digits of each image, which left to right are it.

    Images whose number is not among the keys have no class and are left out.
    """
    needs_h5py(folder / struct_file)
    import h5py

    assert keys is not None
    label_of = {key: label for label, key in enumerate(keys)}
    paths, labels, num_listed = [], [], 0
    with h5py.File(folder / struct_file, "r") as file:
        names, boxes = file["digitStruct/name"], file["digitStruct/bbox"]
        for num_listed in range(1, len(names) + 1):
            name = "".join(chr(int(code)) for code in np.asarray(file[names[num_listed - 1][0]]).reshape(-1))
            box = file[boxes[num_listed - 1][0]]
            digits, lefts = _values(file, box["label"]), _values(file, box["left"])
            number = "".join(str(int(digits[i]) % 10) for i in np.argsort(lefts, kind="stable"))
            if number in label_of:
                paths.append(folder / Path(struct_file).parent / name)
                labels.append(label_of[number])
    found = listed(paths, labels, keys)
    return Found(found.labels, found.read, keys, num_listed=num_listed)


def _values(file: Any, cell: Any) -> list[float]:
    """A field of digitStruct: a number where an image has one digit, references to numbers where it has more."""
    content = np.asarray(cell)
    if content.dtype == object:
        return [float(np.asarray(file[reference]).reshape(-1)[0]) for reference in content.reshape(-1)]
    return [float(content.reshape(-1)[0])]
