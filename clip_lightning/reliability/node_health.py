"""Whether every machine of a run is fit for it: asked of all of them together, before the first step.

Each rank reports its own machine; all judge the same reports, so that all leave with the same sentence, which names the
sick node. One rank alone would leave the others waiting in a collective that never comes.
"""

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.constants import default_pg_timeout

from clip_lightning.errors import AgreedNodeError
from clip_lightning.reliability.monitored_barrier import REPORTED, meet, node_name
from clip_lightning.reliability.rank_group import control_group

# How long a rank may take to report after the others, to read a sample, and to answer the first all-reduce.
PATIENCE = timedelta(seconds=120)
_SHARED_MEMORY = Path("/dev/shm")
_MOST_CLOCK_SKEW_SECONDS = 5.0
_LEAST_FREE_GPU_SHARE = 0.8  # before the model is there


@dataclass(frozen=True)
class Machine:
    """What one rank reports.

    Attributes:
        clock: seconds since 1970, read when all ranks had just met.
        shared_memory_needed: bytes that this rank's loader processes pass through /dev/shm at a time.
        shared_memory_free: bytes free there; None where there is none.
        gpu_bytes: free and total of this rank's GPU; None on a CPU.
        fingerprint: of the data; empty where it cannot be read, and `data_error` says why.
    """

    node: str
    rank: int
    clock: float
    shared_memory_needed: int
    shared_memory_free: int | None
    gpu_bytes: tuple[int, int] | None
    fingerprint: str
    data_error: str = ""


class NodeHealth(Callback):
    """Asks all ranks once the process group stands; nothing happens with a single process."""

    def __init__(self, shared_memory_needed: int, data: Callable[[], str]) -> None:
        """Args.

        shared_memory_needed: bytes, as `Machine` has them.
        data: reads a sample and returns the data's fingerprint.
        """
        self.shared_memory_needed, self.data = shared_memory_needed, data

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises: AgreedNodeError for every node that is not fit."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            check_nodes(self.shared_memory_needed, self.data, trainer.strategy.root_device)


def check_nodes(
    shared_memory_needed: int, data: Callable[[], str], device: torch.device, patience: timedelta = PATIENCE
) -> None:
    """Compares the machines of all ranks, and tries their collectives.

    Args:
        shared_memory_needed, data: as `NodeHealth` has them.
        device: this rank's, on which the default process group works.
        patience: for the slowest rank.
    Raises: AgreedNodeError, the same on every rank.
    """
    meet(REPORTED, patience)
    group = control_group()
    dist.set_timeout(patience, group)
    dist.barrier(group)
    clock = time.time()
    fingerprint, data_error = _read(data)
    meet("read a sample", patience)
    own = Machine(
        node=node_name(),
        rank=dist.get_rank(),
        clock=clock,
        shared_memory_needed=shared_memory_needed,
        shared_memory_free=shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None,
        gpu_bytes=torch.cuda.mem_get_info(device) if device.type == "cuda" else None,
        fingerprint=fingerprint,
        data_error=data_error,
    )
    machines: list[Machine] = [own] * dist.get_world_size()
    dist.all_gather_object(machines, own, group)
    if found := problems(machines):
        raise AgreedNodeError(*found)
    _try_all_reduce(machines, device, patience, group)
    dist.set_timeout(default_pg_timeout, group)


def problems(machines: list[Machine]) -> list[str]:
    """What is wrong with machines, one sentence each, by name. `machines` are the reports of ranks 0, 1, ..."""
    found = []
    clock = statistics.median(machine.clock for machine in machines)
    for node in dict.fromkeys(machine.node for machine in machines):
        own = [machine for machine in machines if machine.node == node]
        skew = own[0].clock - clock
        if abs(skew) > _MOST_CLOCK_SKEW_SECONDS:
            found.append(
                f"node {node}: its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the other nodes'; "
                "set it by NTP, or leave the node out (sbatch --exclude)"
            )
        needed, free = sum(machine.shared_memory_needed for machine in own), own[0].shared_memory_free
        if needed and free is not None and free < needed:
            found.append(
                f"node {node}: {_SHARED_MEMORY} has {_gib(free)} free, and the loader processes of its {len(own)} "
                f"ranks pass {_gib(needed)} through it; give it more, or write a smaller cluster.workers"
            )
    for machine in machines:
        where = f"node {machine.node} (rank {machine.rank})"
        if machine.gpu_bytes is not None and machine.gpu_bytes[0] < _LEAST_FREE_GPU_SHARE * machine.gpu_bytes[1]:
            free, total = machine.gpu_bytes
            found.append(
                f"{where}: {_gib(total - free)} of its GPU's {_gib(total)} are taken by another process; end it "
                "(nvidia-smi shows it), or leave the node out (sbatch --exclude)"
            )
        if machine.data_error:
            found.append(f"{where}: the data cannot be read there ({machine.data_error})")
        elif machines[0].fingerprint and machine.fingerprint != machines[0].fingerprint:
            found.append(
                f"{where}: its data is not rank 0's (fingerprint {machine.fingerprint}, not "
                f"{machines[0].fingerprint}); mount or copy the same data on every node"
            )
    return found


def _try_all_reduce(
    machines: list[Machine], device: torch.device, patience: timedelta, group: dist.ProcessGroup
) -> None:
    """One small all-reduce on the ranks' devices, watched from the CPU.

    Raises: AgreedNodeError with the nodes where it did not come back, or came back wrong.
    """
    ones = torch.ones(1, device=device)
    work = dist.all_reduce(ones, async_op=True)
    assert work is not None
    end = time.monotonic() + patience.total_seconds()
    while not work.is_completed() and time.monotonic() < end:
        time.sleep(0.001)
    is_right = work.is_completed() and int(ones.item()) == len(machines)
    answers = [is_right] * len(machines)
    dist.all_gather_object(answers, is_right, group)
    if sick := [machine.node for machine, answer in zip(machines, answers, strict=True) if not answer]:
        raise AgreedNodeError(
            f"the first all-reduce did not come back on node {', '.join(dict.fromkeys(sick))} within "
            f"{patience.total_seconds():.0f} s; NCCL_DEBUG=INFO shows what it waits for, NCCL_SOCKET_IFNAME names the "
            "network"
        )


def _read(data: Callable[[], str]) -> tuple[str, str]:
    # Whatever keeps a sample from being read on this machine is told to all ranks; raised here, it would hang them.
    try:
        return data(), ""
    except Exception as error:
        return "", " ".join(str(error).split()) or type(error).__name__


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
