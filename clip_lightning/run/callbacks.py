"""Callbacks of a run that belong to no other package. The list of all callbacks, in order, is in `run/train.py`."""

from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
from lightning.pytorch import Callback, Trainer

from clip_lightning.config.schema import Config
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.data.loader import LARGEST_PIECE, PREFETCHED_PIECES
from clip_lightning.data.order.skip_windows import SkipWindow
from clip_lightning.errors import UserError
from clip_lightning.records import Record
from clip_lightning.reliability.node_health import PATIENCE, NodeHealth
from clip_lightning.run import objects
from clip_lightning.training.clip_module import ClipModule
from clip_lightning.training.representation_health import RepresentationHealth

# Bytes per second of a download that is slow but does not hang.
_SLOW_DOWNLOAD = 2e6


class SkipWindowLog(Callback):
    """Writes which windows of the data the restored run skips."""

    def __init__(self, write: Callable[[Sequence[SkipWindow]], None]) -> None:
        self.write = write

    def on_train_start(self, trainer: Trainer, pl_module: ClipModule) -> None:  # type: ignore[override]
        """Writes them, once they are restored."""
        self.write(pl_module.skip_windows)


def node_health(config: Config, data: ContrastiveDataModule) -> NodeHealth:
    """Compares the nodes of the run before the first step: shared memory for batches, and a sample read on each."""

    def read_a_sample() -> str:
        data.layout.read_many(data.order.training_ids(np.zeros(1, dtype=np.int64)))
        return f"{data.fingerprint}-{data.order.digest()}"

    share = config.compute.global_batch // (config.cluster.nodes * config.cluster.devices)
    piece = min(share, LARGEST_PIECE) * 3 * config.model.vision.image_size**2
    in_flight = config.cluster.workers * (PREFETCHED_PIECES + 1)
    patience = PATIENCE + timedelta(seconds=data.layout.largest_download / _SLOW_DOWNLOAD)
    return NodeHealth(in_flight * piece, read_a_sample, patience)


def user_callbacks(config: Config, write: Callable[[list[Record]], None] | None = None) -> list[Callback]:
    """The callbacks that `callbacks` names, in its order.

    Args: write: takes the records of those that make any.
    Raises: UserError where one cannot be made.
    """
    made = [objects.build(value, f"callbacks.{name}") for name, value in config.callbacks.items() if value is not None]
    for name, callback in zip(
        (name for name, value in config.callbacks.items() if value is not None), made, strict=True
    ):
        if not isinstance(callback, Callback):
            raise UserError(
                f"callbacks.{name} is a {type(callback).__name__}, not a Lightning Callback; set its _target_"
            )
        if isinstance(callback, RepresentationHealth):
            callback.sink = write
    return made


def check_callbacks(config: Config) -> None:
    """Raises UserError where a callback or an argument of the Trainer names what cannot be imported or is not taken."""
    for name, value in config.callbacks.items():
        objects.check(value, f"callbacks.{name}")
    objects.check(config.trainer, "trainer")


def stop_reason(trainer: Trainer, callbacks: Sequence[Callback]) -> str:
    """Which of the user's callbacks stopped training, and why where it says so; empty where none did."""
    if not trainer.should_stop or not callbacks:
        return ""
    for callback in callbacks:
        if message := getattr(callback, "stopping_reason_message", None):
            first_sentences = str(message).replace(" Signaling Trainer to stop.", "").rstrip(".")
            return f"{type(callback).__name__}: {first_sentences}"
    return f"stopped by a callback ({', '.join(type(callback).__name__ for callback in callbacks)})"
