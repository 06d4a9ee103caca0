"""Features of many images or texts as files: in parts, resumable, shared among processes without any connection.

The inputs are cut into parts of `rows_per_part`. Worker w of W makes the parts w, w + W, ...; each part is a file that
is complete or absent, so a killed job continues where it was, and a job array of any size fills one folder.
"""

import copy
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clip_lightning.errors import UserError
from clip_lightning.evaluation.weights_hash import weights_hash
from clip_lightning.model.clip import CLIP
from clip_lightning.reliability.atomic_files import write_atomically

FORMATS = ("parquet", "npy")
ABOUT = "_about.json"  # readers of parquet folders skip names with an underscore


class Inputs(NamedTuple):
    """What is embedded.

    Attributes:
        num_rows: how many.
        keys: names of the rows [first, last), one each.
        features: of a list of row numbers by a model: float32 [rows, D]; rows of NaN for what cannot be read.
        identity: a hash of the inputs and of what prepares them.
    """

    num_rows: int
    keys: Callable[[int, int], list[str]]
    features: Callable[[CLIP, range], Tensor]
    identity: str


class Written(NamedTuple):
    """What a call has written.

    Attributes:
        folder: with `part-00000.parquet` (columns `row`, `key`, `features`) or `part-00000.npy`, and _about.json.
        num_rows: of this worker's parts, also those that an earlier start has written.
        num_unreadable: rows of them that this call could not read; null in parquet, NaN in npy.
        num_resumed: parts that an earlier start has written.
    """

    folder: Path
    num_rows: int
    num_unreadable: int
    num_resumed: int


def worker_and_count() -> tuple[int, int]:
    """This worker's number and how many there are: torchrun's ranks, or a SLURM job array times the tasks of a step."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    task, tasks = 0, 1
    if "SLURM_STEP_ID" in os.environ:
        task, tasks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        first, last = int(os.environ["SLURM_ARRAY_TASK_MIN"]), int(os.environ["SLURM_ARRAY_TASK_MAX"])
        step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", "1"))
        jobs, job = (last - first) // step + 1, (int(os.environ["SLURM_ARRAY_TASK_ID"]) - first) // step
        task, tasks = job * tasks + task, jobs * tasks
    return task, tasks


def write(
    folder: Path,
    model: CLIP,
    inputs: Inputs,
    *,
    rows_per_part: int = 65_536,
    file_format: str = "parquet",
    devices: Sequence[torch.device] | None = None,
    worker: tuple[int, int] | None = None,
    report: Callable[[str], None] = print,
) -> Written:
    """Writes the parts of this worker that are missing.

    Args:
        devices: each gets a copy of the model and every so many parts; None: that of the model, or of several visible
            GPUs all where this process is the only worker, and its own where it is one of many.
        worker: this worker's number and how many there are; None: `worker_and_count()`.
        report: gets a line for each part.

    Raises:
        UserError: the folder has parts of other weights, inputs or sizes.
    """
    if file_format not in FORMATS:
        raise UserError(f"the format of features must be {' or '.join(FORMATS)}, not {file_format}")
    about = {
        "weights": weights_hash([model]),
        "inputs": inputs.identity,
        "num_rows": inputs.num_rows,
        "rows_per_part": rows_per_part,
        "format": file_format,
    }
    _claim(folder, about)
    number, count = worker or worker_and_count()
    mine = range(number, -(-inputs.num_rows // rows_per_part), count)
    paths = {part: folder / f"part-{part:05d}.{file_format}" for part in mine}
    missing: SimpleQueue[int] = SimpleQueue()
    for part in (part for part, path in paths.items() if not path.exists()):
        missing.put(part)
    num_resumed = len(mine) - missing.qsize()

    def rows_of(part: int) -> range:
        return range(part * rows_per_part, min((part + 1) * rows_per_part, inputs.num_rows))

    def run(device: torch.device) -> int:
        own = model if next(model.parameters()).device == device else copy.deepcopy(model).to(device)
        unreadable = 0
        for part in _drained(missing):
            start, rows = time.perf_counter(), rows_of(part)
            features = inputs.features(own, rows).cpu().numpy()
            bad = np.isnan(features).any(1)
            _write_part(paths[part], file_format, rows, inputs.keys(rows.start, rows.stop), features, bad)
            unreadable += int(bad.sum())
            speed = len(rows) / (time.perf_counter() - start)
            report(f"{paths[part].name}: {len(rows):,} rows, {int(bad.sum())} unreadable, {speed:,.0f} a second")
        return unreadable

    used = devices or _devices(model, count)
    with ThreadPoolExecutor(len(used)) as pool:
        num_unreadable = sum(pool.map(run, used))
    return Written(folder, sum(len(rows_of(part)) for part in mine), num_unreadable, num_resumed)


def _devices(model: CLIP, num_workers: int) -> list[torch.device]:
    device = next(model.parameters()).device
    if device.type != "cuda":
        return [device]
    if num_workers == 1:
        return [torch.device("cuda", k) for k in range(torch.cuda.device_count())]
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    return [torch.device("cuda", local % torch.cuda.device_count())]


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Writes _about.json, or compares it with the one that is there; all workers write the same."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ABOUT
    has_parts = any(folder.glob("part-*"))  # before the next line: another worker may be starting
    if not file.exists():
        if has_parts:
            raise UserError(f"{folder} has parts without {ABOUT}; name another folder, or delete it")
        write_atomically(file, json.dumps(about, indent=2) + "\n")
    earlier = json.loads(file.read_text(encoding="utf-8"))
    if differing := [key for key in about if earlier.get(key) != about[key]]:
        raise UserError(f"{folder} has features of other {', '.join(differing)}; name another folder, or delete it")


def _drained(queue: "SimpleQueue[int]") -> Iterator[int]:
    while True:
        try:
            yield queue.get_nowait()
        except Empty:
            return


def _write_part(
    path: Path, file_format: str, rows: range, keys: list[str], features: np.ndarray, bad: np.ndarray
) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if file_format == "npy":
        with temporary.open("wb") as stream:
            np.save(stream, features)
    else:
        values = pa.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1], mask=pa.array(bad))
        table = pa.table({"row": np.arange(rows.start, rows.stop), "key": keys, "features": values})
        pq.write_table(table, temporary, compression="zstd", use_dictionary=False)
    temporary.replace(path)
