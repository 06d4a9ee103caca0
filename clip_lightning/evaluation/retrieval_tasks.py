"""Retrieval tasks: images with all their captions, by name from a folder of data sets, or from any captioned data.

    build_retrieval("flickr30k", root)     1,000 images of the Karpathy test split
    build_retrieval("coco", root)          5,000 images
    build_retrieval("xm3600_de", root)     3,600 images with captions in German
    build_retrieval("DIR_OR_FILE")         any path that the data layouts read

The first of these is taken that is there: the official JSON, CLIP_benchmark's list of captions, its webdataset folder,
Hugging Face parquet.
"""

import difflib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from torch import Tensor

from clip_lightning.config.detect import data_option
from clip_lightning.config.schema import DataConfig
from clip_lightning.data.images.decode import SHORTEST, Resize, decode_eval
from clip_lightning.data.layouts.file_rows import read_file
from clip_lightning.data.layouts.layout import BadSample, Layout, build_layout
from clip_lightning.data.sources import list_sources
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.caption_files import find_images, read_captions
from clip_lightning.evaluation.suite.loaders.tars import shards_of

PAPER_PREFIX = "a photo of "  # in front of every caption in Radford et al. 2021, Table 13
# Columns of Hugging Face's tables of captions, and members of CLIP_benchmark's tars.
IMAGE_KEYS = ["image", "jpg", "jpeg", "png", "webp", "filepath", "image_path", "path", "file_name", "filename"]
CAPTION_KEYS = ["caption", "captions", "txt", "text", "sentences", "title"]
_IMAGE_EXTENSIONS = ["jpg", "jpeg", "png", "webp", "gif", "bmp"]


@dataclass(frozen=True)
class RetrievalTask:
    """Images with their captions.

    Attributes:
        captions: of each image, one or more.
        read: image k, encoded bytes or uint8 [H, W, 3]; raises BadSample; called from several threads at once.
        prefixes: text in front of every caption, by the name of the prompts in records; measured one by one.
        num_expected: images that the set is known to have.
        source: the file or folder that it was read from.
        resize: how images become squares, of the model that is evaluated.
    """

    name: str
    captions: Sequence[Sequence[str]]
    read: Callable[[int], bytes | np.ndarray]
    split: str = "test"
    prefixes: Mapping[str, str] = field(default_factory=lambda: {"captions": ""})
    num_expected: int | None = None
    source: str = ""
    resize: Resize = SHORTEST

    def __post_init__(self) -> None:
        if len(self.captions) < 2:
            raise DataError(f"task {self.name} has {len(self.captions)} images with captions, and retrieval needs two.")
        if (empty := next((k for k, texts in enumerate(self.captions) if not len(texts)), None)) is not None:
            raise DataError(f"task {self.name}: image {empty} has no caption; leave it out.")

    @property
    def num_samples(self) -> int:
        """Number of images."""
        return len(self.captions)

    @cached_property
    def num_captions(self) -> np.ndarray:
        """How many captions each image has, int64 [n]."""
        return np.array([len(texts) for texts in self.captions], dtype=np.int64)

    def image(self, k: int, size: int) -> Tensor:
        """Image k as uint8 [3, size, size]. Raises BadSample where it cannot be read."""
        return decode_eval(self.read(k), size, resize=self.resize)


@dataclass(frozen=True)
class Entry:
    """Where a retrieval data set is found below `eval.root`.

    Attributes:
        folders: its folders, the first that is there.
        files: lists of captions in them; `{language}` is replaced.
        images: folders of images, relative to the list's.
        num_images: of the test split.
        how_to_get: one sentence.
    """

    folders: tuple[str, ...]
    files: tuple[str, ...]
    images: tuple[str, ...]
    num_images: int
    how_to_get: str


RETRIEVAL: Mapping[str, Entry] = {
    "flickr30k": Entry(
        ("flickr30k", "wds_flickr30k", "flickr_1k_test_image_text_retrieval", "Flickr30k"),
        ("dataset_flickr30k.json", "flickr30k_test_karpathy.txt"),
        ("flickr30k-images", "flickr30k_images", "images", "Images", "."),
        1000,
        "get the images from the authors' form (Flickr30k), and Karpathy's dataset_flickr30k.json beside them",
    ),
    "coco": Entry(
        ("coco", "mscoco_captions", "wds_mscoco_captions", "mscoco_2014_5k_test_image_text_retrieval", "COCO"),
        ("dataset_coco.json", "coco_test_karpathy.json"),
        (".", "val2014", "images", "images/val2014", "../val2014"),
        5000,
        "unzip val2014.zip of cocodataset.org into coco/, and put Karpathy's dataset_coco.json there",
    ),
    "xm3600": Entry(
        ("xm3600", "crossmodal3600"),
        ("captions.jsonl", "crossmodal3600_captions-{language}.json", "../crossmodal3600_captions-{language}.json"),
        ("images", "."),
        3600,
        "unpack captions.zip and images.tgz of Crossmodal-3600 into xm3600/ and xm3600/images/",
    ),
    "multilingual_coco": Entry(
        ("multilingual_mscoco", "xtd10"),
        ("test_1kcaptions_{language}.txt", "../multilingual_mscoco_captions-{language}.json"),
        ("images", "."),
        1000,
        "put XTD10's test_image_names.txt, test_1kcaptions_LANGUAGE.txt and its images into multilingual_mscoco/",
    ),
}
ALIASES = {"mscoco_captions": "coco", "mscoco": "coco", "crossmodal3600": "xm3600", "xtd10": "multilingual_coco"}


def is_retrieval(name: str) -> bool:
    """Whether `build_retrieval` knows a data set of this name."""
    return (name if name in {*RETRIEVAL, *ALIASES} else _language(name)[0]) in {*RETRIEVAL, *ALIASES}


def build_retrieval(name: str, root: str | Path | None = None) -> RetrievalTask:
    """A retrieval task.

    Args:
        name: of `RETRIEVAL`, with `_LANGUAGE` for another language than English; or the path of captioned data.
        root: folder of data sets.
    Raises: UserError: no such name; DataError: it is not there, or cannot be read.
    """
    base, language = (name, "en") if name in {*RETRIEVAL, *ALIASES} else _language(name)
    base = ALIASES.get(base, base)
    if base not in RETRIEVAL:
        if Path(name).expanduser().exists():
            return captioned(name)
        near = difflib.get_close_matches(name, [*RETRIEVAL, *ALIASES], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(RETRIEVAL)}, or a path."
        raise UserError(f"eval.retrieval: unknown task '{name}'; {hint}")
    entry = RETRIEVAL[base]
    if root is None:
        raise DataError(f"eval.root is not set, and {name} is read from there: {entry.how_to_get}.")
    found = _open(entry, Path(root).expanduser(), language)
    if found is None:
        tried = ", ".join(f"{folder}/{file}" for folder in entry.folders[:1] for file in entry.files)
        raise DataError(
            f"{name} is not below eval.root={root} (looked for {tried}, a webdataset folder and parquet): "
            f"{entry.how_to_get}."
        )
    source, captions, read = found
    num_expected = entry.num_images
    return RetrievalTask(name, captions, read, num_expected=num_expected, source=str(source))


def missing_sentence(name: str, root: str | Path | None) -> str | None:
    """One sentence about why a task cannot be built, None where it can."""
    try:
        build_retrieval(name, root)
    except UserError as error:
        return error.problems[0]
    return None


def captioned(path: str | Path, name: str = "", split: str = "test") -> RetrievalTask:
    """Any captioned data as a task: a path that the data layouts read, all captions of each image.

    A caption of several lines is several captions. Raises DataError where nothing can be read.
    """
    path = str(path)
    name = name or Path(path).expanduser().resolve().stem
    listed = [file for file in (Path(path).expanduser(), *_lists_in(path)) if file.suffix == ".json"]
    if listed:
        found = read_captions(listed[0], split=split)
        paths = find_images(
            listed[0].parent,
            listed[0],
            list(found),
            [folder for entry in RETRIEVAL.values() for folder in entry.images],
        )
        return RetrievalTask(name, list(found.values()), partial(_read_path, paths), split=split, source=str(listed[0]))
    layout, rows = _layout(path, split)
    captions, kept = _captions_of(layout, rows)
    return RetrievalTask(name, captions, _reader(layout, kept), split=split, source=path)


def _lists_in(path: str) -> list[Path]:
    """Karpathy's lists in a folder: `data.kind=coco` reads their training split."""
    return sorted(Path(path).expanduser().glob("dataset_*.json"))


_Found = tuple[Path, list[list[str]], Callable[[int], bytes | np.ndarray]]


def _open(entry: Entry, root: Path, language: str) -> _Found | None:
    """The first source of an entry that is there: its path, captions and reader."""
    folders = [root / name for name in entry.folders if (root / name).is_dir()] + [root]
    for folder in folders:
        for pattern in entry.files:
            file = folder / pattern.format(language=language)
            if file.is_file():
                listed = read_captions(file, language)
                paths = find_images(folder, file, list(listed), entry.images, entry.how_to_get)
                return file, list(listed.values()), partial(_read_path, paths)
    if language != "en":
        return None
    for folder in folders[:-1]:
        if (folder / "test" / "nshards.txt").is_file() or any(folder.rglob("*.parquet")):
            layout, rows = _layout(str(folder), "test")
            captions, kept = _captions_of(layout, rows)
            return folder, captions, _reader(layout, kept)
    return None


def _language(name: str) -> tuple[str, str]:
    """`xm3600_de` or `xm3600-de` as ("xm3600", "de")."""
    for base in sorted([*RETRIEVAL, *ALIASES], key=len, reverse=True):
        if name.startswith((f"{base}_", f"{base}-")):
            return base, name[len(base) + 1 :]
    return name, "en"


def _read_path(paths: Sequence[Path], k: int) -> bytes:
    return read_file(paths[k])


def _layout(path: str, split: str) -> tuple[Layout, np.ndarray]:
    """The layout of a path, and the rows of the split: all where it has no column or folder of splits."""
    folder = Path(path).expanduser()
    if (folder / split / "nshards.txt").is_file():
        if missing := [name for name in shards_of(folder / split) if not name.is_file()]:
            raise DataError(*(f"{name} is missing; nshards.txt beside it announces it." for name in missing))
        path = str(folder / split)
    option = data_option(path)
    if option == "parquet" and folder.is_dir():
        path = _parquet_of(folder, split)
    is_table = option in ("csv", "parquet")
    layout = build_layout(
        DataConfig(
            name="retrieval",
            kind={"csv": "table"}.get(option, option),
            path=path,
            image_keys=IMAGE_KEYS if is_table else _IMAGE_EXTENSIONS,
            caption_keys=CAPTION_KEYS if is_table else ["txt", "caption"],
        )
    )
    rows = np.arange(layout.num_samples)
    if option == "parquet" and path.endswith(".parquet"):
        rows = rows[_of_split(path, split, len(rows))]
    return layout, rows


def _parquet_of(folder: Path, split: str) -> str:
    """The pattern of a folder's parquet files: those named by the split, or all of them."""
    for below in (folder, folder / "data"):
        for pattern in (f"{split}*.parquet", f"{split.upper()}*.parquet", "*.parquet"):
            if any(below.glob(pattern)):
                return str(below / pattern)
    return str(folder)


def _of_split(path: str, split: str, num_rows: int) -> np.ndarray:
    """Which rows have this split in the column `split`, bool [n]; all where there is no such column."""
    parts = []
    for source in list_sources(path, ".parquet"):
        if "split" not in pq.read_schema(source.url).names:
            return np.ones(num_rows, dtype=bool)
        parts.append(pq.read_table(source.url, columns=["split"])["split"].to_numpy())
    found: np.ndarray = np.concatenate(parts) == split
    if not found.any():
        raise DataError(f"{path} has no row of the split {split} in its column `split`.")
    return found


def _captions_of(layout: Layout, rows: np.ndarray) -> tuple[list[list[str]], list[int]]:
    """The captions of each sample that has any, and these samples."""
    captions, kept = [], []
    for row in rows.tolist():
        lines = [line.strip() for text in layout.readable_captions(row) for line in text.splitlines()]
        if texts := [line for line in lines if line]:
            captions.append(texts)
            kept.append(row)
    return captions, kept


def _reader(layout: Layout, rows: Sequence[int]) -> Callable[[int], bytes | np.ndarray]:
    """Reads one image at a time: layouts keep open files and tables without a lock of their own."""
    lock = threading.Lock()

    def read(k: int) -> bytes | np.ndarray:
        with lock:
            try:
                return layout.read(rows[k]).image
            except OSError as error:
                raise BadSample("unreadable image", str(error)) from error

    return read
