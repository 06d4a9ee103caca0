"""Saves and restores a training run: what goes into a checkpoint, and when.

The state is taken and given through the strategy, so that a sharded model hands over whole tensors as well. Restoring
happens once the model stands on its device and the optimizer exists, before the loader is made: what the loader yields
follows from `samples_seen` alone.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from clip_lightning.errors import CheckpointError
from clip_lightning.reliability.checkpoint import Checkpoint, CheckpointFolder, open_checkpoint

WEIGHTS, TRAINING = "weights", "training"


class CheckpointCallback(Callback):
    """Writes a checkpoint at a cadence in samples and where training ends, asked to or not.

    Attributes:
        seconds: time spent saving so far, to be left out of throughput.
        restored: the checkpoint that this start continues, or None.
    """

    def __init__(
        self, folder: CheckpointFolder, *, every: int, resume: Checkpoint | None, about: Mapping[str, Any]
    ) -> None:
        """Args.

        every: samples between checkpoints; 0: only at the end.
        resume: the checkpoint to go on from; only rank 0's counts.
        about: plain values for the manifest: science, data fingerprint, versions.
        """
        self.folder, self.every, self.about = folder, every, dict(about)
        self.restored = resume
        self.seconds = 0.0
        self._samples_before = 0
        self._saved_at: int | None = None
        self._is_due = False

    def go_back(self, at_most: int) -> int:
        """Lets the next fit begin at the newest checkpoint of at most so many samples. To be called on every rank.

        Nothing is written over that checkpoint, which may be the only good one: a run that is killed before its next
        one comes to the same divergence once more, and goes back alike.

        Returns: its samples; 0: the run begins anew, since the place is before its first checkpoint.
        Raises: CheckpointError on every rank where there should be a checkpoint, and none verifies.
        """
        self.restored, place = None, 0
        if _rank() == 0:
            self.restored = self.folder.newest(at_most)
            if self.restored is None and self.every and at_most >= self.every:
                place = -1
            else:
                place = self.restored.samples_seen if self.restored else 0
                self.folder.remove_after(place)
        if dist.is_initialized():
            places = [place]
            dist.broadcast_object_list(places)
            place = places[0]
        if place < 0:
            raise CheckpointError(
                f"{self.folder.path} has no checkpoint to go back to, at or before {at_most:,} samples; take an older "
                "one from elsewhere, or start over with fresh=true"
            )
        self._is_due, self._saved_at = False, None
        return place

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores weights, optimizer and the module's own state on every rank, and tells the loader where to begin."""
        path = trainer.strategy.broadcast(self.restored.path if self.restored else None)
        if path is not None:
            self.restored = self.restored or open_checkpoint(path)
            training = self.restored.load(TRAINING)
            trainer.strategy.load_model_state_dict({"state_dict": self.restored.load(WEIGHTS)})
            trainer.strategy.load_optimizer_state_dict({"optimizer_states": training["optimizers"]})
            trainer.precision_plugin.load_state_dict(training["precision"])
            pl_module.on_load_checkpoint(training["module"])
            self._saved_at = self.restored.samples_seen
        self._samples_before = _samples_seen(pl_module)
        trainer.datamodule.samples_seen = self._samples_before  # type: ignore[attr-defined]
        trainer.datamodule.passed_over = pl_module.passed_over  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when the step went past a multiple of `every`; not amid steps out of order, but right after them."""
        before, self._samples_before = self._samples_before, _samples_seen(pl_module)
        self._is_due |= bool(self.every) and before // self.every < self._samples_before // self.every
        if self._is_due and not pl_module.guard.is_in_doubt():  # type: ignore[union-attr, operator]
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves where training stops, complete or not."""
        self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves now, unless this place is saved already. To be called on every rank: sharded state is gathered."""
        samples_seen = _samples_seen(pl_module)
        self._is_due = False
        if self._saved_at == samples_seen:
            return
        start = time.perf_counter()
        module: dict[str, Any] = {}
        pl_module.on_save_checkpoint(module)
        weights = trainer.strategy.lightning_module_state_dict()
        optimizers = [trainer.strategy.optimizer_state(optimizer) for optimizer in trainer.optimizers]
        if _rank() == 0:
            training = {"optimizers": optimizers, "precision": trainer.precision_plugin.state_dict(), "module": module}
            self.folder.save(samples_seen, {WEIGHTS: weights, TRAINING: training}, self.about)
        self._saved_at = samples_seen
        self.seconds += time.perf_counter() - start


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _samples_seen(module: LightningModule) -> int:
    return int(module.samples_seen)  # type: ignore[arg-type]


def model_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """The weights of the CLIP model in a checkpoint, without the training module's prefix or its further state."""
    prefix = "model."
    weights = checkpoint.load(WEIGHTS)
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
