"""Callbacks of a run that belong to no other package. The list of all callbacks, in order, is in `run/train.py`."""

import numpy as np
from lightning.pytorch import Callback, Trainer

from clip_lightning.config.schema import Config
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.data.loader import LARGEST_PIECE, PREFETCHED_PIECES
from clip_lightning.reliability.node_health import NodeHealth
from clip_lightning.run.rank_zero import OtherRank
from clip_lightning.training.clip_module import ClipModule


class SkipWindowLog(Callback):
    """Writes which windows of the data the restored run skips."""

    def __init__(self, run: OtherRank) -> None:
        self.run = run

    def on_train_start(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
        """Writes them, once they are restored."""
        self.run.skip_windows(pl_module.skip_windows)


def node_health(config: Config, data: ContrastiveDataModule) -> NodeHealth:
    """Compares the nodes of the run before the first step: shared memory for batches, and a sample read on each."""

    def read_a_sample() -> str:
        data.layout.read_many(data.order.training_ids(np.zeros(1, dtype=np.int64)))
        return data.fingerprint

    share = config.compute.global_batch // (config.cluster.nodes * config.cluster.devices)
    piece = min(share, LARGEST_PIECE) * 3 * config.model.vision.image_size**2
    in_flight = config.cluster.workers * (PREFETCHED_PIECES + 1)
    return NodeHealth(in_flight * piece, read_a_sample)
