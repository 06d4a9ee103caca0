"""Which caption belongs to which image, among captions of almost the same words: SugarCrepe and Winoground.

SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610): an image of COCO val2017, its caption and a changed caption; correct
if the caption has the larger score. Winoground (Thrush et al. 2022, arXiv 2204.03162, section 3.3): two images and
two captions of the same words; text score: each image prefers its caption; image score: each caption prefers its
image; group score: both. Equal scores count with the probability of being correct when ties are broken at random, so
that a model whose features have all collapsed scores exactly chance.
"""

import io
import json
import math
import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchmetrics import Metric

from clip_lightning.data.images.decode import SHORTEST, Resize, decode_eval
from clip_lightning.data.layouts.file_rows import read_file
from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.caption_files import find_images
from clip_lightning.evaluation.counts import UNIT
from clip_lightning.evaluation.encode import ImageReader, encode_texts
from clip_lightning.evaluation.inference import inference, refuse_broken
from clip_lightning.evaluation.measured import mean_of_proportions, wilson
from clip_lightning.model.clip import CLIP
from clip_lightning.records import Record
from clip_lightning.tokenizer import Tokenizer

# The subsets, and how many captions their files have.
SUGAR_CREPE = {
    "add_att": 692, "add_obj": 2062, "replace_att": 788, "replace_obj": 1652, "replace_rel": 1406, "swap_att": 666,
    "swap_obj": 245,
}  # fmt: skip
_VAL2017 = ("val2017", "images/val2017", "../val2017", "../../val2017", "../coco/val2017", "../../coco/val2017", ".")
_GET_SUGAR_CREPE = "put SugarCrepe's seven json files and COCO's val2017 into sugar_crepe/"
_GET_WINOGROUND = "accept the terms of facebook/winoground on the hub, and put its data/ into winoground/"

# Shape suffixes: n instances, I images and C captions of an instance, D embedding


@dataclass(frozen=True)
class CompositionalTask:
    """Instances of I images and two captions each; image i belongs to caption i, and further captions to none.

    Attributes:
        name: of the data set.
        subsets: the subset of each instance; the data set's own name where it has none.
        images: int64 [n, I], numbers of images.
        captions: of each instance.
        num_images: how many images there are.
        read: image k, encoded; raises BadSample; called from several threads at once.
        resize: how images become squares, of the model that is evaluated.
    """

    name: str
    subsets: Sequence[str]
    images: np.ndarray
    captions: Sequence[tuple[str, str]]
    num_images: int
    read: Callable[[int], bytes | np.ndarray]
    split: str = "test"
    resize: Resize = SHORTEST

    @property
    def num_samples(self) -> int:
        """Number of instances."""
        return len(self.captions)

    def image(self, k: int, size: int) -> Tensor:
        """Image k as uint8 [3, size, size]. Raises BadSample where it cannot be read."""
        return decode_eval(self.read(k), size, resize=self.resize)


def scores_of(images_nID: Tensor, captions_nCD: Tensor) -> Tensor:
    """Cosines [n, I, C] of unit features, float32, of one element-wise product: equal features have equal scores."""
    return (images_nID.float()[:, :, None] * captions_nCD.float()[:, None]).sum(-1)


def _wins(first: Tensor, second: Tensor) -> Tensor:
    """1 where the first is larger, 1/2 where they are equal, 0 otherwise: float64."""
    return (first > second).double() + 0.5 * (first == second).double()


def choose_caption(scores_n1C: Tensor) -> dict[str, Tensor]:
    """`caption_accuracy`, float64 [n]: the probability that the first of two captions is chosen."""
    return {"caption_accuracy": _wins(scores_n1C[:, 0, 0], scores_n1C[:, 0, 1])}


def choose_both(scores_nIC: Tensor) -> dict[str, Tensor]:
    """Winoground's `text_score`, `image_score` and `group_score`, float64 [n]: the probability that each is reached."""
    own_n2 = scores_nIC.diagonal(dim1=1, dim2=2)
    other_n2 = scores_nIC.flip(2).diagonal(dim1=1, dim2=2)  # of image i with the other caption
    text = _wins(own_n2[:, 0], other_n2[:, 0]) * _wins(own_n2[:, 1], other_n2[:, 1])
    image = _wins(own_n2[:, 0], other_n2[:, 1]) * _wins(own_n2[:, 1], other_n2[:, 0])
    worst_n1, best_n1 = own_n2.amin(1, keepdim=True), other_n2.amax(1, keepdim=True)
    own_tied, other_tied = (own_n2 == worst_n1).sum(1), (other_n2 == worst_n1).sum(1)
    orders = torch.tensor([[1 / math.comb(a + b, a) for b in range(3)] for a in range(3)], dtype=torch.float64)
    tied = orders.to(scores_nIC.device)[own_tied, other_tied]
    group = torch.where((worst_n1 == best_n1)[:, 0], tied, (worst_n1 > best_n1)[:, 0].double())
    return {"text_score": text, "image_score": image, "group_score": group}


CHANCE = {"caption_accuracy": 1 / 2, "text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}


class ChoiceAccuracy(Metric):
    """Shares of instances that are solved, by subset.

    Attributes:
        counts: int64 [1 + scores, subsets]: instances, and those solved in units of 1 / UNIT.
    """

    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, num_scores: int, num_subsets: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(1 + num_scores, num_subsets, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, shares: Tensor, subsets_n: Tensor) -> None:
        """Counts shares float64 [scores, n] of instances of subsets int64 [n]."""
        units = (UNIT * shares).round().long()
        self.counts.index_add_(1, subsets_n, torch.cat([torch.ones_like(units[:1]), units]))

    def compute(self) -> Tensor:
        """The share of each score and subset, float64 [scores, subsets]."""
        counts = self.counts.double()
        return counts[1:] / UNIT / counts[0]


class CompositionalEvaluator:
    """The scores of a task, by subset, and their mean over subsets where there are several."""

    def __init__(
        self,
        task: CompositionalTask,
        image_size: int,
        *,
        batch: int = 256,
        precision: str = "fp32",
        budget: MemoryBudget | None = None,
    ) -> None:
        """Args: as of `ZeroShotEvaluator`."""
        self.task, self.batch, self.precision = task, batch, precision
        self.name = task.name
        self._transform = f"{image_size} {task.resize.mode} {task.resize.interpolation}"
        image = partial(_image, task, image_size)
        self._reader = ImageReader(task.num_images, image, image_size, batch, budget or MemoryBudget())

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        """Records, the same on every rank; instances with an image that cannot be read are left out.

        Raises UserError when features are NaN or infinite, DataError when no image can be read.
        """
        task = self.task
        with inference(model, device, self.precision):
            images, kept = self._reader.encode(model.encode_image, device)
            refuse_broken(int((~images.isfinite()).any(1).sum()), task.num_images, f"{task.name}, images")
            note = self._reader.note(task.name, kept)
            texts = [text for pair in task.captions for text in pair]
            found = encode_texts(model, tokenizer, texts, device, self.batch)
        row = torch.full((task.num_images,), -1, device=device)
        row[kept] = torch.arange(len(kept), device=device)
        rows_nI = row[torch.as_tensor(task.images, device=device)]
        complete_n = (rows_nI >= 0).all(1)
        if not complete_n.any():
            raise DataError(f"task {task.name}: none of its {task.num_images} images can be read.")
        scores_nIC = scores_of(images[rows_nI[complete_n]], found.features[found.row.unflatten(0, (-1, 2))[complete_n]])
        shares = (choose_caption if task.images.shape[1] == 1 else choose_both)(scores_nIC)
        names = list(dict.fromkeys(task.subsets))
        subsets = torch.tensor([names.index(subset) for subset in task.subsets], device=device)[complete_n]
        accuracy = ChoiceAccuracy(len(shares), len(names)).to(device)
        accuracy.update(torch.stack(list(shares.values())), subsets)
        return [replace(one, note=note) for one in self._records(list(shares), names, accuracy.counts.tolist())]

    def _records(self, quantities: list[str], names: list[str], counts: list[list[int]]) -> list[Record]:
        """Every rank has counted all instances: they are few, and their features are on every rank."""
        numbers, *solved = counts
        records = []
        for what, hits in zip(quantities, solved, strict=True):
            shares = [hit / (UNIT * n) for hit, n in zip(hits, numbers, strict=True) if n]
            ends = [wilson(hit / UNIT, n) for hit, n in zip(hits, numbers, strict=True) if n]
            present = [name for name, n in zip(names, numbers, strict=True) if n]
            for name, value, (low, high), n in zip(present, shares, ends, filter(None, numbers), strict=True):
                task = self.task.name if name == self.task.name else f"{self.task.name}/{name}"
                records.append(self._record(task, what, value, low, high, n))
            if len(present) > 1:
                successes = [hit / UNIT for hit, n in zip(hits, numbers, strict=True) if n]
                mean, low, high = mean_of_proportions(successes, list(filter(None, numbers)))
                records.append(self._record(self.task.name, what, mean, low, high, sum(numbers)))
        return records

    def _record(self, task: str, what: str, value: float, low: float, high: float, n: int) -> Record:
        return Record(
            what=what, value=value, low=low, high=high, n=n, chance=CHANCE[what], task=task, split=self.task.split,
            precision=self.precision, transform=self._transform,
        )  # fmt: skip


def _image(task: CompositionalTask, size: int, k: int) -> Tensor:
    return task.image(k, size)


def build_compositional(name: str, root: str | Path | None) -> CompositionalTask:
    """`sugar_crepe`, one of its subsets as `sugar_crepe/swap_obj`, or `winoground`, from a folder of data sets.

    Raises: UserError: no such name; DataError: it is not there, or cannot be read.
    """
    base, _, subset = name.partition("/")
    if name == "winoground" or (base == "sugar_crepe" and (not subset or subset in SUGAR_CREPE)):
        if root is None:
            get = _GET_WINOGROUND if name == "winoground" else _GET_SUGAR_CREPE
            raise DataError(f"eval.root is not set, and {name} is read from there: {get}.")
        folder = Path(root).expanduser()
        subsets = [subset] if subset else list(SUGAR_CREPE)
        return _winoground(folder) if name == "winoground" else _sugar_crepe(folder, subsets, name)
    known = ", ".join(["sugar_crepe", *(f"sugar_crepe/{one}" for one in SUGAR_CREPE), "winoground"])
    raise UserError(f"eval: unknown compositional task '{name}'; known are {known}.")


def _sugar_crepe(root: Path, subsets: Sequence[str], name: str) -> CompositionalTask:
    folders = [root / "sugar_crepe" / "data", root / "sugar_crepe", root / "sugar-crepe" / "data"]
    folder = next((one for one in folders if any((one / f"{subset}.json").is_file() for subset in subsets)), None)
    if folder is None:
        raise DataError(f"{name} is not below eval.root={root}: {_GET_SUGAR_CREPE}.")
    names, captions, of_subset = [], [], []
    for subset in subsets:
        file = folder / f"{subset}.json"
        try:
            # The keys are not a range: swap_obj.json has no "108".
            for row in json.loads(file.read_text(encoding="utf-8")).values():
                names.append(row["filename"])
                captions.append((row["caption"], row["negative_caption"]))
                of_subset.append(subset)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file} cannot be read as SugarCrepe's captions ({error!r}); {_GET_SUGAR_CREPE}."
            ) from error
    numbers = {image: k for k, image in enumerate(dict.fromkeys(names))}
    paths = find_images(folder, folder / f"{subsets[0]}.json", list(numbers), _VAL2017, _GET_SUGAR_CREPE)
    images = np.array([[numbers[image]] for image in names])
    label = of_subset if len(subsets) > 1 else [name] * len(names)
    return CompositionalTask(name, label, images, captions, len(paths), lambda k: read_file(paths[k]))


def _winoground(root: Path) -> CompositionalTask:
    """From examples.jsonl with a folder or zip of images, or from parquet."""
    for folder in (root / "winoground" / "data", root / "winoground"):
        if (folder / "examples.jsonl").is_file():
            return _winoground_files(folder)
        if parquet := sorted(folder.glob("*.parquet")):
            return _winoground_table(parquet)
    raise DataError(f"winoground is not below eval.root={root}: {_GET_WINOGROUND}.")


def _winoground_files(folder: Path) -> CompositionalTask:
    lines = (folder / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    try:
        rows = [json.loads(line) for line in lines if line.strip()]
        captions = [(row["caption_0"], row["caption_1"]) for row in rows]
        names = [f"{row[key]}.png" for row in rows for key in ("image_0", "image_1")]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'examples.jsonl'} is not Winoground's ({error!r}); {_GET_WINOGROUND}.") from error
    if (archive := folder / "images.zip").is_file() and not (folder / "images").is_dir():
        read = _zip_reader(archive, names)
    else:
        paths = find_images(folder, folder / "examples.jsonl", names, ("images", "."), _GET_WINOGROUND)
        read = lambda k: read_file(paths[k])  # noqa: E731
    return _winoground_task(captions, read)


def _winoground_table(files: Sequence[Path]) -> CompositionalTask:
    columns = ["caption_0", "caption_1", "image_0", "image_1"]
    try:
        rows = [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]
        images = [row[key]["bytes"] for row in rows for key in ("image_0", "image_1")]
        captions = [(row["caption_0"], row["caption_1"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{files[0]} is not a table of Winoground ({error!r}); {_GET_WINOGROUND}.") from error
    return _winoground_task(captions, images.__getitem__)


def _winoground_task(captions: Sequence[tuple[str, str]], read: Callable[[int], bytes]) -> CompositionalTask:
    images = np.arange(2 * len(captions)).reshape(-1, 2)
    return CompositionalTask("winoground", ["winoground"] * len(captions), images, captions, images.size, read)


def _zip_reader(archive: Path, names: Sequence[str]) -> Callable[[int], bytes]:
    content = zipfile.ZipFile(io.BytesIO(archive.read_bytes()))
    members = {member.rpartition("/")[2]: member for member in content.namelist()}
    lock = threading.Lock()

    def read(k: int) -> bytes:
        try:
            with lock:
                return content.read(members[names[k]])
        except (KeyError, zipfile.BadZipFile) as error:
            raise BadSample("missing image file", f"{names[k]} in {archive}") from error

    return read
