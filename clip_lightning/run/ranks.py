"""The processes of an evaluation, which needs no Trainer: torchrun or srun started them, or Lightning's Fabric does."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

from clip_lightning.config.schema import ClusterConfig
from clip_lightning.run import launch
from clip_lightning.run.hardware import cores_per_rank, num_visible_gpus, uses_gpu
from clip_lightning.slurm import environment as slurm_environment
from clip_lightning.slurm.tasks import check_tasks


@contextmanager
def ranks(cluster: ClusterConfig) -> Iterator[torch.device]:
    """Starts the processes of the cluster and connects them; yields the device of this process.

    What Lightning starts repeats this process's command from the beginning, so that everything that can fail should
    come before. Raises UserError where processes on other nodes would be waited for that nothing starts.
    """
    on_gpu = uses_gpu(cluster.accelerator)
    device = torch.device("cuda" if on_gpu else "cpu")
    if launch.are_started_outside():
        check_tasks(cluster, num_visible_gpus(cluster.accelerator))
        launch.connect_ranks(on_gpu)
        device = torch.device("cuda", launch.local_rank()) if on_gpu else device
        torch.set_num_threads(cluster.threads or cores_per_rank(cluster.devices))
    elif cluster.nodes * cluster.devices > 1:
        launch.check_launched(cluster)
        fabric = Fabric(
            accelerator=device.type,
            devices=cluster.devices,
            strategy=DDPStrategy(),
            plugins=slurm_environment.environment(cluster),
        )
        fabric.launch()
        device = fabric.device
        torch.set_num_threads(cluster.threads or cores_per_rank(cluster.devices))
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        yield device
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
