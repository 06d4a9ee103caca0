"""Run by test_node_health.py: two ranks ask each other whether they are fit; argument 1 says what ails rank 1."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from clip_lightning.errors import NodeError
from clip_lightning.reliability.node_health import check_nodes


def data(path: Path, hangs: bool) -> str:
    if hangs:
        time.sleep(6)
        sys.exit(0)
    return path.read_text()


def ask(rank: int, ailment: str, folder: Path) -> None:
    os.environ["SLURMD_NODENAME"] = f"n{rank + 1}"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    if ailment == "silent" and rank == 1:
        time.sleep(6)
        return
    path = folder / ("elsewhere" if ailment == "data" and rank == 1 else "data")
    needed = 2**60 if ailment == "memory" and rank == 1 else 1
    hangs = ailment == "hanging" and rank == 1
    begun = time.perf_counter()
    patience = timedelta(seconds=60 if ailment in ("data", "memory", "nothing") else 2)
    try:
        check_nodes(needed, lambda: data(path, hangs), torch.device("cpu"), patience)
        text = f"fit in {time.perf_counter() - begun} s"
    except NodeError as error:
        text = "\n".join(error.problems)
    (folder / f"rank{rank}").write_text(text)


if __name__ == "__main__":
    place = Path(sys.argv[2])
    (place / "data").write_text("the same everywhere")
    torch.multiprocessing.start_processes(ask, (sys.argv[1], place), nprocs=2, start_method="fork")
