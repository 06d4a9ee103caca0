"""What the start of a training rank costs on 100 million samples, and the way from a position to bytes after that.

    python -m experiments.benchmarks.data_scale --json scale.json

10,000 shards of 10,000 samples, sizes only: every shard and every sidecar is a hard link to one file, so that nothing
is stored. 50 samples of each shard (0.5 %) are listed as problems. The whole data module is built, in a process of its
own, whose memory is reported. The row of 5 billion samples has the sizes
alone (its 500,000 sidecars would be opened like the 10,000, in 50 times the time).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from clip_lightning.config.schema import DataConfig
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.data.layouts.index import Keys, sidecar_paths, write_sidecar
from clip_lightning.data.layouts.layout import Problem
from clip_lightning.data.layouts.tar import Tars
from clip_lightning.data.layouts.tar_index import RECORD, ShardIndex
from clip_lightning.data.order.order import Order, TrainingOrder
from clip_lightning.data.sources import list_sources
from clip_lightning.errors import run_command

PER_SHARD = 10_000
PROBLEMS_PER_SHARD = 50
SHARD_BYTES = 300 << 20
BATCH = 1024


def simulate(folder: Path, num_shards: int) -> None:
    """Shards without bytes, and their sidecars."""
    first = folder / "000000.tar"
    with first.open("wb") as file:
        file.truncate(SHARD_BYTES)
    (source,) = list_sources(str(first), ".tar")
    sidecar = sidecar_paths(source, Keys.of(DataConfig()), None)[0]
    records = np.zeros(PER_SHARD, RECORD)
    records["image_offset"] = np.arange(PER_SHARD) * (SHARD_BYTES // PER_SHARD)
    problems = [Problem("", f"{number:09d}.jpg", "truncated image") for number in range(PROBLEMS_PER_SHARD)]
    write_sidecar(sidecar, source, ShardIndex(records, problems, "0" * 16))
    for number in range(1, num_shards):
        for path in (first, sidecar):
            os.link(path, folder / path.name.replace("000000", f"{number:06d}"))


def memory_mib(kind: str = "VmRSS") -> float:
    """Resident memory of this process; `RssAnon` leaves out mapped files, which the system may drop at any time."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(kind)) / 1024


def measure(layout: Tars | None, order: TrainingOrder, begin: float, before: float) -> dict[str, Any]:
    """Reads a batch, and times 200 more; with a layout, also the look into the sidecars."""
    order.locate(np.arange(BATCH, dtype=np.int64))
    row: dict[str, Any] = {"samples": order.num_samples, "problems": len(layout.problems) if layout else 0}
    row |= {"start_seconds": time.perf_counter() - begin, "memory_mib": memory_mib(), "of_which_imports_mib": before}
    batches = [np.arange(first, first + BATCH) for first in range(0, 200 * BATCH * 97, BATCH * 97)]
    begin = time.perf_counter()
    located = [order.locate(batch % order.num_samples).sample_ids for batch in batches]
    row["microseconds_per_position"] = (time.perf_counter() - begin) / len(batches) / BATCH * 1e6
    if layout is not None:
        for number in ("first", "again"):  # the first time the sidecars are mapped
            begin = time.perf_counter()
            for sample_ids in located:
                for shard, rows in layout._by_shard(sample_ids):
                    layout._records(shard)[sample_ids[rows] % PER_SHARD]
            row[f"microseconds_per_record_{number}"] = (time.perf_counter() - begin) / len(batches) / BATCH * 1e6
        row["memory_mib_all_mapped_but_files"] = memory_mib("RssAnon")
    return row


def child(folder: str, num_shards: int) -> None:
    """One measurement, printed as JSON; an empty folder takes the sizes alone."""
    before, begin = memory_mib(), time.perf_counter()
    if not folder:
        order = Order(np.full(num_shards, PER_SHARD, np.int64), seed=0, num_held_out=1024)
        print(json.dumps(measure(None, order, begin, before)))
        return
    module = ContrastiveDataModule(
        DataConfig(name="scale", kind="webdataset", path=folder),
        image_size=224,
        tokenizer=None,
        seed=0,
        global_batch=BATCH,
        total_samples=1 << 40,
        workers=0,
    )
    assert isinstance(module.layout, Tars)
    row = measure(module.layout, module.order, begin, before)
    print(json.dumps(row | {"bad_samples": module.bad_samples.total()}))


def run(folder: str, num_shards: int) -> dict[str, Any]:
    """`child` in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks.data_scale", "--child", folder, str(num_shards)]
    row: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return row


def main() -> None:
    """Prints and writes the rows."""
    parser = argparse.ArgumentParser(description="Start-up and memory of a rank on very large data.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the shards")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where the rows are written")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "SHARDS"), help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.child:
        child(settings.child[0], int(settings.child[1]))
        return
    shards = 1_000 if settings.quick else 10_000
    with tempfile.TemporaryDirectory() as folder:
        simulate(Path(folder), shards)
        rows = [run(folder, shards), run("", 500_000)]
    for row in rows:
        for key, value in row.items():
            print(f"{key:36}{value:>16,.2f}" if isinstance(value, float) else f"{key:36}{value:>16,}")
        print()
    if settings.json is not None:
        settings.json.parent.mkdir(parents=True, exist_ok=True)
        settings.json.write_text(json.dumps({"ratios": {}, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
