"""TorchScript archives, in which OpenAI published its weights, read as zip files: nothing in them is run.

`torch.jit.load` compiles and may run the code of an archive, and `weights_only=True` refuses them. Here the one pickle
with the parameters is read by an unpickler that knows a few names, each a function of this module; any other name is
refused. Imports no torch: an architecture is read from the shapes alone.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from clip_lightning.errors import UserError

# Storage classes by their name: the dtype's name and its bytes.
_STORAGES = {
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "DoubleStorage": ("float64", 8),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
_LARGEST_PICKLE = 64 * 2**20  # bytes; OpenAI's largest archive has 1 MB


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor of an archive is.

    Attributes:
        dtype: torch's name of it.
        shape, stride: in elements.
        offset: in elements of the storage.
        member: file inside the archive that holds the storage.
        num_elements: of the storage.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    member: str
    num_elements: int


class _Module:
    """What an archive's own classes become: attributes and nothing else."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("the state of a module is not a mapping")
        self.attributes = state


@dataclass(frozen=True)
class _Storage:
    dtype: str
    num_bytes: int
    key: str
    num_elements: int


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with code and constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of an archive by name, as a state dict would name them.

    Raises:
        UserError: the file is damaged, compressed, or names objects besides tensors and modules.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            found = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(found) != 1:
                raise UserError(f"{path} is a zip file without a model: it has no data.pkl")
            folder = found[0].removesuffix("data.pkl")
            read = [entries[name] for name in entries if name == found[0] or name.startswith(f"{folder}data/")]
            # torch compresses the code of an archive, which is not read, and never its tensors.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in read):
                raise UserError(f"{path}: its tensors are compressed, as torch never writes them; it is not read")
            if entries[found[0]].file_size > _LARGEST_PICKLE:
                raise UserError(f"{path}: its data.pkl is larger than any model's; it is not read")
            root = _Unpickler(BytesIO(archive.read(found[0]))).load()
    except UserError:
        raise
    except _RefusedError as error:
        raise UserError(
            f"{path} is a TorchScript archive that refers to {error}, which is neither a tensor nor a module; "
            "nothing in it was run"
        ) from error
    except Exception as error:  # a damaged pickle raises exceptions of any kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged, or is not an archive of a model ({reason})") from error
    tensors: dict[str, StoredTensor] = {}
    _collect(root, "", folder, tensors, 0)
    if not tensors:
        raise UserError(f"{path} is an archive without tensors")
    return tensors


class _RefusedError(Exception):
    """A name that is not in the list."""


class _Unpickler(pickle.Unpickler):
    """Knows tensors, storages, lists and the archive's own modules; each becomes a record of this file."""

    def find_class(self, module: str, name: str) -> Any:
        """The function or class of this module that represents a name in the pickle."""
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in _STORAGES:
            return name
        if (found := _KNOWN.get((module, name))) is not None:
            return found
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ("storage", class, key, device, number of elements)."""
        kind, storage, key, _, num_elements = pid
        if kind != "storage" or storage not in _STORAGES or not isinstance(num_elements, int):
            raise _RefusedError(str(kind))
        dtype, num_bytes = _STORAGES[storage]
        return _Storage(dtype, num_bytes, str(key), num_elements)


def _tensor(storage: _Storage, offset: int, shape: Any, stride: Any, *_: Any) -> Any:
    return storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride))


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _values(values: Any) -> list[Any]:
    return list(values)


def _typed(value: Any, _: Any) -> Any:
    return value


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.jit._pickle", "build_intlist"): _values,
    ("torch.jit._pickle", "build_doublelist"): _values,
    ("torch.jit._pickle", "build_boollist"): _values,
    ("torch.jit._pickle", "build_tensorlist"): _values,
    ("torch.jit._pickle", "restore_type_tag"): _typed,
    ("collections", "OrderedDict"): OrderedDict,
}


def _collect(value: Any, name: str, folder: str, found: dict[str, StoredTensor], depth: int) -> None:
    if depth > 100:
        raise UserError("an archive nests its modules without end; it is not read")
    if isinstance(value, _Module):
        for key, inner in getattr(value, "attributes", {}).items():
            _collect(inner, f"{name}.{key}" if name else str(key), folder, found, depth + 1)
    elif isinstance(value, tuple) and len(value) == 4 and isinstance(value[0], _Storage):
        storage, offset, shape, stride = value
        member = f"{folder}data/{storage.key}"
        found[name] = StoredTensor(storage.dtype, shape, stride, offset, member, storage.num_elements)
