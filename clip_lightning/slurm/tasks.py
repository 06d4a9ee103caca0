"""The SLURM step of this process, and whether its tasks are the ranks of the config.

Read from the environment alone, without torch: it decides which rank this process is before anything else does.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from clip_lightning.config.schema import ClusterConfig
from clip_lightning.errors import UserError


class Step(NamedTuple):
    """The step of a job that this process is a task of.

    Attributes:
        node: SLURM's name of this task's node.
        rank, local_rank: of this task in the step, and on its node.
        node_rank: of the node in the job.
        tasks_per_node: as SLURM words it: "8(x2)".
    """

    node: str
    rank: int
    local_rank: int
    node_rank: int
    num_tasks: int
    num_nodes: int
    tasks_per_node: str


def in_allocation() -> bool:
    """Whether this process belongs to a SLURM job."""
    return "SLURM_JOB_ID" in os.environ


def step() -> Step | None:
    """The step, where srun started this process or an ancestor of it; None elsewhere, as in the batch script itself."""
    if "SLURM_STEP_ID" not in os.environ or not in_allocation():
        return None

    def number(name: str) -> int:
        return int(os.environ[name])

    return Step(
        node=os.environ.get("SLURMD_NODENAME", ""),
        rank=number("SLURM_PROCID"),
        local_rank=number("SLURM_LOCALID"),
        node_rank=number("SLURM_NODEID"),
        num_tasks=number("SLURM_STEP_NUM_TASKS"),
        num_nodes=number("SLURM_STEP_NUM_NODES"),
        tasks_per_node=os.environ.get("SLURM_STEP_TASKS_PER_NODE", "?"),
    )


def note_progress(signal_name: str = "saved") -> None:
    """Reports to slurm/train.sbatch that this start has saved something new, and which signal ended it."""
    if file := os.environ.get("CLIP_LIGHTNING_SAVED"):
        Path(file).write_text(signal_name + "\n", encoding="utf-8")


def ranks_are_tasks(cluster: ClusterConfig) -> bool:
    """Whether srun has started every rank. Otherwise torchrun has, or Lightning starts those of one node itself."""
    found = step()
    launched_otherwise = {"RANK", "LOCAL_RANK"} & os.environ.keys()
    return found is not None and not launched_otherwise and found.num_tasks == cluster.nodes * cluster.devices


def _counts(tasks_per_node: str) -> list[int]:
    """As SLURM words them, each number once: "12,4(x2)" -> [12, 4]."""
    return [int(count) for count in re.findall(r"(\d+)(?:\(x\d+\))?", tasks_per_node)]


def check_tasks(cluster: ClusterConfig, num_visible_gpus: int | None) -> None:
    """Compares SLURM's tasks, the GPUs that this task sees, and the config; before anything waits for another rank.

    Args:
        num_visible_gpus: None where the run uses none.
    Raises: UserError with all numbers in one sentence. Only rank 0 prints it.
    """
    if not in_allocation() or {"RANK", "LOCAL_RANK"} & os.environ.keys():
        return
    found, ranks = step(), cluster.nodes * cluster.devices
    job = os.environ["SLURM_JOB_ID"]
    if found is None and "SLURMD_NODENAME" not in os.environ:
        raise UserError(f"job {job} is held from here, but this process is on none of its nodes; write srun before it")
    num_tasks, num_nodes = (found.num_tasks, found.num_nodes) if found else (1, 1)
    started = f"SLURM started {num_tasks} task{'s' * (num_tasks > 1)} on {num_nodes} node{'s' * (num_nodes > 1)}"
    started += f" ({found.tasks_per_node} on each)" if found else " (the batch script itself, without srun)"
    gpus = "no GPU is requested" if num_visible_gpus is None else f"a task sees {num_visible_gpus} GPUs"
    numbers = (
        f"job {job}: {started}, {gpus}, and cluster.nodes={cluster.nodes} x cluster.devices={cluster.devices} are "
        f"{ranks} processes"
    )
    one_starts_the_rest = num_tasks == num_nodes == cluster.nodes == 1
    fit = (num_tasks, num_nodes) == (ranks, cluster.nodes) and (
        found is None or set(_counts(found.tasks_per_node)) <= {cluster.devices}
    )
    if not one_starts_the_rest and not fit:
        fixes = [f"srun --nodes={cluster.nodes} --ntasks-per-node={cluster.devices}"]
        if found and len(set(_counts(found.tasks_per_node))) == 1:
            fixes.insert(0, f"cluster.nodes={num_nodes} cluster.devices={num_tasks // num_nodes}")
        problem = f"{numbers}; write {' or '.join(fixes)}"
        raise UserError(*[problem] * (found is None or found.rank == 0))
    if num_visible_gpus is not None and num_visible_gpus < cluster.devices:
        problem = (
            f"{numbers}; let every task see all GPUs of its node: --gpus-per-node={cluster.devices}, without "
            "--gpus-per-task and --gpu-bind"
        )
        raise UserError(*[problem] * (found is None or found.local_rank == 0))
