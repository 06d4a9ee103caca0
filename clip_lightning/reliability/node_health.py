"""Checks of all nodes of a run together, before the first step.

Each rank reports its own node. All compare the same reports, so that all end with the same error, which names the
faulty node; an error on one rank would hang the others in their next collective.
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
class NodeReport:
    """What one rank reports.

    Attributes:
        clock: seconds since 1970, read just after a barrier.
        shared_memory_needed: bytes that this rank's loader processes pass through /dev/shm at a time.
        shared_memory_free: bytes free there; None where there is none.
        gpu_bytes: free and total of this rank's GPU; None on a CPU.
        fingerprint: of the data; empty where it cannot be read, and `data_error` has the reason.
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
    """Checks all ranks once the process group exists; does nothing with a single process."""

    def __init__(self, shared_memory_needed: int, data: Callable[[], str], data_patience: timedelta = PATIENCE) -> None:
        """Args.

        shared_memory_needed: bytes, as `NodeReport` has them.
        data: reads a sample and returns the data's fingerprint.
        data_patience: how long the slowest rank may take for it.
        """
        self.shared_memory_needed, self.data, self.data_patience = shared_memory_needed, data, data_patience

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raises: AgreedNodeError for every node that fails a check."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            check_nodes(
                self.shared_memory_needed,
                self.data,
                trainer.strategy.root_device,
                data_patience=self.data_patience,
            )


def check_nodes(
    shared_memory_needed: int,
    data: Callable[[], str],
    device: torch.device,
    patience: timedelta = PATIENCE,
    data_patience: timedelta | None = None,
) -> None:
    """Compares the nodes of all ranks, and tries a collective.

    Args:
        shared_memory_needed, data: as `NodeHealth` has them.
        device: this rank's, on which the default process group works.
        patience: for the slowest rank.
        data_patience: for the slowest rank to read a sample; None is `patience`.
    Raises: AgreedNodeError, the same on every rank.
    """
    meet(REPORTED, patience)
    group = control_group()
    dist.set_timeout(patience, group)
    dist.barrier(group)
    clock = time.time()
    fingerprint, data_error = _read(data)
    meet("read a sample", data_patience or patience)
    own = NodeReport(
        node=node_name(),
        rank=dist.get_rank(),
        clock=clock,
        shared_memory_needed=shared_memory_needed,
        shared_memory_free=shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None,
        gpu_bytes=torch.cuda.mem_get_info(device) if device.type == "cuda" else None,
        fingerprint=fingerprint,
        data_error=data_error,
    )
    reports: list[NodeReport] = [own] * dist.get_world_size()
    dist.all_gather_object(reports, own, group)
    if found := problems(reports):
        raise AgreedNodeError(*found)
    _try_all_reduce(reports, device, patience, group)
    dist.set_timeout(default_pg_timeout, group)


def problems(reports: list[NodeReport]) -> list[str]:
    """What is wrong with the nodes, one sentence each, by name. `reports` are those of ranks 0, 1, ..."""
    found = []
    clock = statistics.median(report.clock for report in reports)
    for node in dict.fromkeys(report.node for report in reports):
        own = [report for report in reports if report.node == node]
        skew = own[0].clock - clock
        if abs(skew) > _MOST_CLOCK_SKEW_SECONDS:
            found.append(
                f"node {node}: its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the other nodes'; "
                "set it by NTP, or leave the node out (sbatch --exclude)"
            )
        needed, free = sum(report.shared_memory_needed for report in own), own[0].shared_memory_free
        if needed and free is not None and free < needed:
            found.append(
                f"node {node}: {_SHARED_MEMORY} has {_gib(free)} free, and the loader processes of its {len(own)} "
                f"ranks pass {_gib(needed)} through it; give it more, or write a smaller cluster.workers"
            )
    for report in reports:
        where = f"node {report.node} (rank {report.rank})"
        if report.gpu_bytes is not None and report.gpu_bytes[0] < _LEAST_FREE_GPU_SHARE * report.gpu_bytes[1]:
            free, total = report.gpu_bytes
            found.append(
                f"{where}: {_gib(total - free)} of its GPU's {_gib(total)} are taken by another process; end it "
                "(nvidia-smi shows it), or leave the node out (sbatch --exclude)"
            )
        if report.data_error:
            found.append(f"{where}: the data cannot be read there ({report.data_error})")
        elif reports[0].fingerprint and report.fingerprint != reports[0].fingerprint:
            found.append(
                f"{where}: its data is not rank 0's (fingerprint {report.fingerprint}, not "
                f"{reports[0].fingerprint}); mount or copy the same data on every node"
            )
    return found


def _try_all_reduce(
    reports: list[NodeReport], device: torch.device, patience: timedelta, group: dist.ProcessGroup
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
    is_right = work.is_completed() and int(ones.item()) == len(reports)
    answers = [is_right] * len(reports)
    dist.all_gather_object(answers, is_right, group)
    if failed := [report.node for report, answer in zip(reports, answers, strict=True) if not answer]:
        raise AgreedNodeError(
            f"the first all-reduce did not come back on node {', '.join(dict.fromkeys(failed))} within "
            f"{patience.total_seconds():.0f} s; NCCL_DEBUG=INFO shows what it waits for, NCCL_SOCKET_IFNAME names the "
            "network"
        )


def _read(data: Callable[[], str]) -> tuple[str, str]:
    # The error is reported to all ranks; raised here, it would hang them.
    try:
        return data(), ""
    except Exception as error:
        return "", " ".join(str(error).split()) or type(error).__name__


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
