"""What the cluster group says about itself and about the rest of a config: ranks, shards, jobs; without torch."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from clip_lightning.config.checks import ranges
from clip_lightning.config.schema import ClusterConfig, Config, EvaluateConfig, SlurmConfig


def problems(config: Config | EvaluateConfig) -> Iterator[str]:
    """One sentence for each thing that is wrong."""
    cluster, ranks = config.cluster, config.cluster.nodes * config.cluster.devices
    if cluster.strategy == "single" and ranks > 1:
        yield (
            f"cluster.strategy=single is one process, and cluster.nodes={cluster.nodes} x "
            f"cluster.devices={cluster.devices} are {ranks}; write cluster=ddp"
        )
    yield from _shards(cluster)
    yield from _launched_elsewhere(cluster)
    if ranges.get(config, "compute.precision") == "fp16" and cluster.strategy in ("fsdp", "hsdp"):
        yield f"compute.precision=fp16 cannot be scaled under cluster={cluster.strategy}; write compute.precision=bf16"
    if ranges.get(config, "compute.precision") == "fp16" and cluster.accelerator == "cpu":
        yield "compute.precision=fp16 needs a GPU and cluster.accelerator is cpu; write compute.precision=bf16"
    yield from _scheduler(config)


def _shards(cluster: ClusterConfig) -> Iterator[str]:
    """Whether there are ranks to share the weights, and how many share them."""
    ranks, size = cluster.nodes * cluster.devices, cluster.shard_size or cluster.devices
    if cluster.strategy in ("fsdp", "hsdp") and ranks == 1:
        yield f"cluster.strategy={cluster.strategy} shares weights among ranks and there is 1; write cluster.devices=2"
    elif cluster.strategy == "hsdp" and (ranks % size or not 1 < size < ranks):
        fit = next((n for n in range(2, ranks) if ranks % n == 0), None)
        fix = f"write cluster.shard_size={fit}, or cluster=fsdp" if fit else "write cluster=fsdp"
        yield (
            f"cluster.shard_size={size} (null: cluster.devices) must divide the {ranks} ranks into two groups or more, "
            f"of two or more; {fix} for one group"
        )
    if cluster.strategy != "hsdp" and cluster.shard_size is not None:
        yield f"cluster.shard_size={cluster.shard_size} has no effect without cluster=hsdp; leave it out"


def take_torchrun_world(config: Any) -> Any:
    """The config, to train on the processes that torchrun started, as `--nnodes=1:4` leaves them after a lost node.

    Only where the global batch is a multiple of their number; otherwise the check below refuses the config.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or not isinstance(config, Config):
        return config
    cluster, world, local = config.cluster, int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    is_even = world % local == 0 and config.compute.global_batch % world == 0
    if cluster.nodes * cluster.devices > 1 and is_even:
        cluster.nodes, cluster.devices = world // local, local
    return config


def _launched_elsewhere(cluster: ClusterConfig) -> Iterator[str]:
    """Whether torchrun started as many processes as the cluster has."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if (world, local) != (cluster.nodes * cluster.devices, cluster.devices):
        yield (
            f"torchrun started {world} processes, {local} on this node, and cluster.nodes={cluster.nodes} x "
            f"cluster.devices={cluster.devices} are {cluster.nodes * cluster.devices}; write "
            f"cluster.nodes={world // local} cluster.devices={local}, or start a number of processes that divides "
            "compute.global_batch"
        )


def _scheduler(config: Config | EvaluateConfig) -> Iterator[str]:
    """Settings of jobs that nothing reads, and limits that leave no time to train."""
    cluster, default = config.cluster, SlurmConfig()
    if isinstance(config, EvaluateConfig) and cluster.scheduler == "slurm":
        yield "cluster.scheduler=slurm: evaluate.py submits nothing; leave it out, and write srun before the command"
    elif isinstance(config, EvaluateConfig) and cluster.time_limit_minutes is not None:
        yield f"cluster.time_limit_minutes={cluster.time_limit_minutes:g} has no effect on an evaluation; leave it out"
    if cluster.scheduler != "slurm":
        for name, value in asdict(cluster.slurm).items():
            if value != getattr(default, name):
                yield (
                    f"cluster.slurm.{name}={value} has no effect with cluster.scheduler={cluster.scheduler}; choose a "
                    "slurm_ option of cluster, or leave it out"
                )
        return
    limit, warning = cluster.time_limit_minutes, cluster.slurm.signal_seconds
    if limit is not None and warning >= 60 * limit:
        yield (
            f"cluster.slurm.signal_seconds={warning} must be less than the {60 * limit:g} seconds of "
            f"cluster.time_limit_minutes={limit:g}; write a longer limit"
        )
    if cluster.accelerator == "cpu" and cluster.slurm.gpus_per_node:
        yield (
            f"cluster.slurm.gpus_per_node={cluster.slurm.gpus_per_node} has no effect with cluster.accelerator=cpu; "
            "leave it out"
        )
