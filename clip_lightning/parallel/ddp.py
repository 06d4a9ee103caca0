"""Data parallel with the whole model on every rank."""

from lightning.pytorch.strategies import DDPStrategy

from clip_lightning.parallel.process_group import FIRST_STEP_TIMEOUT


def strategy() -> DDPStrategy:
    """What Lightning's Trainer takes for `ddp`.

    Gradients are views of the buckets that are reduced (no second copy), and buffers are not sent from rank 0: the
    statistics of batch norm are averaged by their owner instead.
    """
    return DDPStrategy(gradient_as_bucket_view=True, forward_sync_buffers=False, timeout=FIRST_STEP_TIMEOUT)
