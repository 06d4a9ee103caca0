"""Which rank this process is, known before torch is imported."""

import os

from clip_lightning.slurm import tasks as slurm_tasks


def rank_of_process() -> int:
    """The rank that a launcher gave this process: torchrun's, SLURM's, or Lightning's own; 0 without one."""
    for name in ("RANK", "LOCAL_RANK"):  # before SLURM's: inside a job both may have started ranks of their own
        if name in os.environ:
            return int(os.environ[name])
    task = slurm_tasks.step()
    return task.rank if task else 0
