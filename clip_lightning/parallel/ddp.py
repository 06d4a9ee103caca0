"""One process, or data parallel with the whole model on every rank."""

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy, Strategy

from clip_lightning.config.schema import ClusterConfig
from clip_lightning.errors import UserError

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def strategy(cluster: ClusterConfig) -> str | Strategy:
    """What Lightning's Trainer takes as `strategy`.

    Gradients are views of the buckets that are reduced (no second copy), and buffers are not sent from rank 0: the
    statistics of batch norm are averaged by their owner instead.

    Raises: UserError where the strategy is none of these, or has no use for the ranks.
    """
    num_ranks = cluster.nodes * cluster.devices
    if cluster.strategy == "ddp":
        return DDPStrategy(
            gradient_as_bucket_view=True,
            forward_sync_buffers=False,
            timeout=COLLECTIVE_TIMEOUT,
        )
    if cluster.strategy != "single":
        raise UserError(f"cluster.strategy={cluster.strategy} is not known here: write single or ddp")
    if num_ranks > 1:
        raise UserError(f"cluster.strategy=single trains on one device and there are {num_ranks}: write cluster=ddp")
    return "auto"
