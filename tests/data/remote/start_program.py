"""Run by test_starts.py: reads batches in a fresh process and prints the seconds to the first and to the last one.

    python start_program.py DATA CACHE STORE WORKERS BATCHES [--hold]

DATA is a folder of tars or parquet files; STORE reads it directly (`local`), through a store that takes 0.2 s to open a
file (`slow`), or from fsspec's memory (`memory`). With --hold the process keeps its loader open until it is killed.
"""

import json
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from clip_lightning.config.schema import CacheConfig, DataConfig, TextConfig, TokenizerConfig, ValidationConfig
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.tokenizer import build_tokenizer


class SlowStore(LocalFileSystem):
    """A store that needs 0.2 s to open a file."""

    protocol = "slow"
    local_file = False

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        time.sleep(0.2)
        return super().open(path, mode)


def main() -> None:
    data, cache, store, workers, batches = sys.argv[1:6]
    torch.set_num_threads(1)
    url = {"local": "", "slow": "slow://", "memory": "memory:/"}[store] + data
    if store == "slow":
        fsspec.register_implementation("slow", SlowStore, clobber=True)
    if store == "memory":
        for file in Path(data).iterdir():
            MemoryFileSystem().pipe(f"{data}/{file.name}", file.read_bytes())
    begin = time.perf_counter()
    kind = "parquet" if list(Path(data).glob("*.parquet")) else "webdataset"
    text = TextConfig(name="text", context_length=16, tokenizer=TokenizerConfig(kind="trained", vocab_size=300))
    config = DataConfig(
        name="test", kind=kind, path=url, validation=ValidationConfig(num_samples=0), cache=CacheConfig(folder=cache)
    )
    module = ContrastiveDataModule(
        config,
        image_size=16,
        tokenizer=build_tokenizer(text, None, ["picture number 0123456789"]),
        seed=0,
        global_batch=16,
        total_samples=16 * 1000,
        workers=int(workers),
    )
    built = time.perf_counter()
    loader = iter(module.train_dataloader())
    ids = next(loader).sample_ids.tolist()
    first = time.perf_counter()
    ids += [k for batch in islice(loader, int(batches) - 1) for k in batch.sample_ids.tolist()]
    times = {"index": built - begin, "first": first - built, "all": time.perf_counter() - built}
    print(json.dumps({"pid": os.getpid(), "ids": ids, **times}), flush=True)
    if "--hold" in sys.argv:
        time.sleep(600)


if __name__ == "__main__":
    main()
