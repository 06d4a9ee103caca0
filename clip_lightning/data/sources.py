"""The files that a data path names: a folder, a file, a pattern with braces or stars, on this node or in a store.

Any fsspec URL works (`s3://`, `gs://`, `hf://`, `https://`); nothing is passed to a shell.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from clip_lightning.errors import DataError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST_NAMES = 10_000_000
_MOST_SHOWN = 20  # missing files that a message lists
_MOUNTS = Path("/proc/self/mounts")
_NETWORK_TYPES = (
    "nfs", "lustre", "gpfs", "cifs", "smb", "ceph", "beegfs", "glusterfs", "afs", "9p", "pvfs", "orangefs", "panfs",
    "wekafs", "daos", "fuse",
)  # fmt: skip


class Source(NamedTuple):
    """One file.

    Attributes:
        url: its absolute path or URL.
        size: in bytes.
        version: changes when the file does; empty where a store has no such field.
    """

    url: str
    size: int
    version: str

    @property
    def is_remote(self) -> bool:
        """Whether it must be downloaded first."""
        return "://" in self.url

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.url.rpartition("/")[2]


def cache_folder(folder: str | None) -> Path:
    """The folder of indexes and downloads on this node."""
    return Path(folder).expanduser() if folder else Path("~/.cache/clip_lightning").expanduser()


def list_sources(path: str, suffix: str, key: str = "data.path", how_to_get: str = "") -> list[Source]:
    """The files that `path` names, sorted; in a folder those that end in `suffix`, one level of folders deep.

    Args:
        key: what the path is called in messages.
    Raises: DataError where there are none.
    """
    if path.startswith("pipe:"):
        raise DataError(f"{key}={path} is a shell command, and none is run; give the shards' own URLs.")
    names = list(expand_braces(path))
    sources: list[Source] = []
    missing: list[str] = []
    for name in names:
        try:
            sources += _remote(name, suffix, key) if "://" in name else _local(name, suffix)
        except FileNotFoundError:
            missing.append(name)
        except PermissionError as error:
            raise DataError(f"{key}={name} cannot be read ({error.strerror or error}).") from error
    if missing and len(names) > 1:
        shown = ", ".join(name.rpartition("/")[2] for name in missing[:_MOST_SHOWN])
        more = f" and {len(missing) - _MOST_SHOWN:,} more" if len(missing) > _MOST_SHOWN else ""
        numbers = f"{len(missing):,} of {len(names):,} files do not exist ({shown}{more})"
        raise DataError(f"{key}={path}: {numbers}. {how_to_get}".strip())
    if missing:
        raise DataError(f"{key}={path} does not exist. {how_to_get}".strip())
    if not sources:
        raise DataError(f"{key}={path} holds no {suffix} file. {how_to_get}".strip())
    return sources


def expand_braces(path: str) -> Iterator[str]:
    """`a{00..02}b` and `a{x,y}b` written out, from left to right."""
    if found := _RANGE.search(path):
        first, last = found.groups()
        if abs(int(last) - int(first)) > _MOST_NAMES:
            raise DataError(f"{path} names more than {_MOST_NAMES:,} files.")
        parts = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    elif found := _CHOICE.search(path):
        parts = found[1].split(",")
    else:
        yield path
        return
    for part in parts:
        yield from expand_braces(path[: found.start()] + part + path[found.end() :])


def open_store(url: str, key: str = "data.path") -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises: DataError where no installed package can read such a store.
    """
    try:
        store, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{key}={url}: {error}.") from error
    return store, path


def list_beside(folder: str, suffix: str) -> list[Source]:
    """The files in a folder of a store that end in `suffix`; none where the store has no listing, as plain HTTP."""
    store, path = open_store(folder)
    try:
        infos = store.ls(path, detail=True)
    except Exception:  # stores raise their own kinds; the files are a shortcut only
        return []
    return [
        Source(store.unstrip_protocol(one["name"]), int(one["size"]), version_of(one))
        for one in infos
        if one["name"].endswith(suffix) and one.get("size") is not None
    ]


def any_on_network(sources: Iterable[Source], mounts: Path = _MOUNTS) -> bool:
    """Whether a local path is on a network mount, by the type of its file system.

    Args: mounts: the table of mounted file systems; without one, nothing counts as a network mount.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="backslashreplace").splitlines()
    except OSError:
        return False
    # Later mounts hide earlier ones at the same place; a space in a path is written \\040.
    types = {parts[1].replace("\\040", " "): parts[2] for line in lines if len(parts := line.split()) > 2}
    folders = {Path(source.url).parent for source in sources if not source.is_remote}
    for folder in {Path(os.path.realpath(folder)) for folder in folders}:
        mounted = next((str(place) for place in (folder, *folder.parents) if str(place) in types), "/")
        if (kind := types.get(mounted, "")).startswith(_NETWORK_TYPES) and "overlay" not in kind:
            return True
    return False


def version_of(info: dict[str, Any]) -> str:
    """A field of a store's listing that changes with the file; empty without one."""
    for name in ("ETag", "etag", "md5Hash", "md5", "sha256", "LastModified", "last_modified", "updated", "mtime"):
        if info.get(name):
            return str(info[name])
    return ""


def _local(name: str, suffix: str) -> list[Source]:
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        paths = sorted(path.glob(f"*{suffix}")) or sorted(path.glob(f"*/*{suffix}"))
    elif path.exists() or not glob.has_magic(name):
        paths = [path]
    else:
        paths = [Path(found) for found in sorted(glob.glob(str(path)))]  # noqa: PTH207 - absolute
    return [_stat(path) for path in paths]


def _stat(path: Path) -> Source:
    stat = path.stat()
    return Source(str(path), stat.st_size, str(stat.st_mtime_ns))


def _remote(url: str, suffix: str, key: str) -> list[Source]:
    store, path = open_store(url, key)
    if glob.has_magic(path):
        infos = list(store.glob(path, detail=True).values())
    else:
        info = store.info(path)
        infos = [info] if info["type"] == "file" else store.ls(path, detail=True)
        if info["type"] != "file":
            infos = [one for one in infos if one["name"].endswith(suffix)]
    files = [Source(store.unstrip_protocol(one["name"]), int(one["size"]), version_of(one)) for one in infos]
    return sorted(files)
