"""The ranks of a SLURM job for Lightning, whose own class would requeue jobs from inside a signal handler."""

import os
import re
import socket
import subprocess
from contextlib import suppress

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment

from clip_lightning.config.schema import ClusterConfig
from clip_lightning.slurm.tasks import Step, in_allocation, ranks_are_tasks, step


class SlurmEnvironment(ClusterEnvironment):
    """One rank per task of a step; rank 0's address comes from MASTER_ADDR and MASTER_PORT, as train.sbatch sets them.

    Without them it is the step's first node, and a port that follows from the job's number.
    """

    def __init__(self, task: Step) -> None:
        super().__init__()
        self.task = task

    @property
    def creates_processes_externally(self) -> bool:
        """srun has started the tasks already."""
        return True

    @property
    def main_address(self) -> str:
        """Where rank 0 listens."""
        return os.environ.get("MASTER_ADDR") or address_of(first_node(os.environ["SLURM_STEP_NODELIST"]))

    @property
    def main_port(self) -> int:
        """The port there."""
        return int(os.environ.get("MASTER_PORT") or 20_000 + int(os.environ["SLURM_JOB_ID"]) % 10_000)

    @staticmethod
    def detect() -> bool:
        """Whether this process is a task of a step."""
        return step() is not None

    def world_size(self) -> int:
        """Number of tasks."""
        return self.task.num_tasks

    def set_world_size(self, size: int) -> None:
        """SLURM decides."""

    def global_rank(self) -> int:
        """Of this task in its step."""
        return self.task.rank

    def set_global_rank(self, rank: int) -> None:
        """SLURM decides."""

    def local_rank(self) -> int:
        """Of this task on its node."""
        return self.task.local_rank

    def node_rank(self) -> int:
        """Of the node in its job."""
        return self.task.node_rank


def environment(cluster: ClusterConfig) -> ClusterEnvironment | None:
    """What Lightning's Trainer takes as a plugin; None outside of SLURM, and where torchrun started the ranks."""
    task = step()
    if task is not None and ranks_are_tasks(cluster):
        return SlurmEnvironment(task)
    return LightningEnvironment() if in_allocation() and "RANK" not in os.environ else None


def address_of(node: str) -> str:
    """Where a node is reached: by its name, or where nothing resolves that, as SLURM itself reaches it."""
    with suppress(OSError):
        socket.getaddrinfo(node, None)
        return node
    with suppress(OSError):  # a container may lack scontrol
        shown = subprocess.run(["scontrol", "show", "node", node], capture_output=True, text=True, check=False).stdout
        if found := re.search(r"NodeAddr=(\S+)", shown):
            return found[1]
    return node


def first_node(nodes: str) -> str:
    """The first name of SLURM's list: "gpu[07-09,12],big1" -> "gpu07"."""
    head, bracket, inside = nodes.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0]
    first = inside.split("]")[0].split(",")[0].split("-")[0]
    return head + first
