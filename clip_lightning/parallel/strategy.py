"""The strategy that the cluster names: one process, the whole model on every rank, or the model in shards."""

from lightning.pytorch.strategies import Strategy

from clip_lightning.config.schema import ClusterConfig
from clip_lightning.errors import UserError
from clip_lightning.parallel import ddp, fsdp


def build(cluster: ClusterConfig) -> str | Strategy:
    """What Lightning's Trainer takes as `strategy`.

    Raises: UserError where the strategy is unknown, or cannot use several ranks.
    """
    if cluster.strategy == "ddp":
        return ddp.strategy()
    if cluster.strategy in ("fsdp", "hsdp"):
        return fsdp.strategy(cluster)
    if cluster.strategy != "single":
        raise UserError(f"cluster.strategy={cluster.strategy} is not known: write single, ddp, fsdp or hsdp")
    if (num_ranks := cluster.nodes * cluster.devices) > 1:
        raise UserError(f"cluster.strategy=single trains on one device and there are {num_ranks}: write cluster=ddp")
    return "auto"
