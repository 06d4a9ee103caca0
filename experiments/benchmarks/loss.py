"""Losses of one process against open_clip 3.3.0's, forward and backward, features of width 512.

    python -m experiments.benchmarks.loss --quick --json loss.json

Time: CPU seconds of one thread (seconds of the device on a GPU). Memory: how far the peak of a fresh process grows over
its inputs. Without --quick also 32,768 pairs, and this side alone for one rank's share of up to 262,144 pairs over 8
and 64 ranks, where the other ranks are played by torch's fake process group.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from clip_lightning.config.schema import LossConfig
from clip_lightning.errors import run_command
from clip_lightning.loss import LOSSES
from experiments.benchmarks.alternation import Cases, Row, alternate, parser, run

WIDTH, CHUNK, MIB = 512, LossConfig.chunk, 2**20
PEERS: dict[str, type] = {"softmax": ClipLoss, "sigmoid": SigLipLoss}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def features(num_pairs: int) -> dict[str, Tensor]:
    """Normalised features, scale and bias that want gradients."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, num_pairs, WIDTH, generator=generator)
    image, text = torch.nn.functional.normalize(drawn, dim=-1).to(DEVICE)
    found = {"image": image.clone(), "text": text.clone()}
    found |= {"scale": torch.tensor([14.3], device=DEVICE), "bias": torch.tensor([-10.0], device=DEVICE)}
    return {name: value.requires_grad_() for name, value in found.items()}


def step(side: str, name: str, leaves: dict[str, Tensor]) -> float:
    """One forward and backward pass; returns the loss."""
    inputs = list(leaves.values()) if name == "sigmoid" else list(leaves.values())[:3]
    for leaf in inputs:
        leaf.grad = None
    value = LOSSES[name](chunk=CHUNK)(*inputs).loss if side == "ours" else PEERS[name]()(*inputs)
    value.backward()
    return float(value.detach())


def clock() -> float:
    """Seconds of this process's CPU, or of the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def time_row(name: str, num_pairs: int, rounds: int) -> Row:
    """Pairs a second of both sides."""
    leaves = features(num_pairs)
    values: dict[str, float] = {}

    def work(side: str) -> Callable[[], int]:
        def run() -> int:
            values[side] = step(side, name, leaves)
            return num_pairs

        return run

    row = alternate(f"{name}_time_{num_pairs}", work("ours"), work("theirs"), rounds=rounds, clock=clock)
    return row._replace(note=f"losses {values['ours']:.6f} and {values['theirs']:.6f}", unit="pairs/s")


def memory_row(name: str, num_pairs: int) -> Row:
    """Pairs for each MiB of both sides."""
    ours, theirs = (fresh_peak(side, name, num_pairs, 1)["mib"] for side in ("ours", "theirs"))
    note = f"{ours:,.0f} and {theirs:,.0f} MiB"
    return Row(f"{name}_memory_{num_pairs}", num_pairs / ours, num_pairs / theirs, 1, note, "pairs/MiB")


def fresh_peak(side: str, name: str, num_pairs: int, ranks: int) -> dict[str, float]:
    """MiB and seconds of one step in a process of its own."""
    command = [sys.executable, "-m", "experiments.benchmarks.loss", "--peak", side, name, str(num_pairs), str(ranks)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return {"mib": float(printed[0]), "seconds": float(printed[1])}


def peak(side: str, name: str, num_pairs: int, ranks: int) -> tuple[float, float]:
    """Growth of this process's peak over one step, MiB, and its seconds; `num_pairs` are over all ranks."""
    step(side, name, features(64))  # libraries allocate at their first call
    leaves = features(num_pairs // ranks)
    if ranks > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before: float = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak of imports
        before = resident("VmHWM")
    begin = clock()
    step(side, name, leaves)
    seconds = clock() - begin
    after = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else resident("VmHWM")
    return (after - before) / MIB, seconds


def resident(field: str) -> float:
    """A line of this process's memory, bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split(f"{field}:")[1].split()[0]) * 1024


def large(sizes: list[int]) -> Iterator[dict[str, Any]]:
    """One rank's share of a global batch, this side alone."""
    print(f"{'one rank of':24}{'pairs':>10}{'MiB':>10}{'seconds':>10}")
    for name in PEERS:
        for ranks in (8, 64):
            for num_pairs in sizes:
                found = fresh_peak("ours", name, num_pairs, ranks)
                print(f"{name:16}{ranks:8}{num_pairs:10,}{found['mib']:10,.0f}{found['seconds']:10.2f}", flush=True)
                yield {"name": f"{name}_{num_pairs}_of_{ranks}", **found}


def cases(settings: argparse.Namespace) -> Cases:
    """All comparisons."""
    rounds = 2 if settings.quick else 5
    found: dict[str, Callable[[], Iterable[Row]]] = {}
    for name, memory, times in (("softmax", (16384,), (8192,)), ("sigmoid", (8192,), (8192,))):
        largest = 32768 if name == "softmax" else 16384
        every = [size for size in (8192, 16384, 32768) if size <= largest]
        for num_pairs in memory if settings.quick else every:
            found[f"{name}_memory_{num_pairs}"] = partial(one, memory_row, name, num_pairs)
        for num_pairs in times if settings.quick else every:
            few = rounds if num_pairs < 32768 else 2
            found[f"{name}_time_{num_pairs}"] = partial(one, time_row, name, num_pairs, few)
    return found


def one(measure: Callable[..., Row], *arguments: Any) -> Iterator[Row]:
    """The row of a case."""
    yield measure(*arguments)


def main() -> None:
    """Prints and writes the ratios."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--peak"]:
        side, name, num_pairs, ranks = sys.argv[2:6]
        print(*peak(side, name, int(num_pairs), int(ranks)))
        return
    run(
        "experiments.benchmarks.loss",
        parser("Losses against open_clip's: time and memory."),
        cases,
        lambda settings: [] if settings.quick else list(large([32768, 65536, 131072, 262144])),
    )


if __name__ == "__main__":
    run_command(main)
