"""Lets callbacks of Lightning and of users check after an evaluation of this project as after a validation."""

from lightning.pytorch import LightningModule, Trainer


def run_validation_hooks(trainer: Trainer, module: LightningModule) -> None:
    """Runs all callbacks' hooks of a validation. To be called on every rank, inside a fit, after the evaluation.

    An evaluation here is no validation loop of Lightning's; EarlyStopping, ModelCheckpoint and others read its numbers
    in `trainer.callback_metrics` nevertheless.
    """
    for hook in ("on_validation_start", "on_validation_epoch_end", "on_validation_end"):
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            getattr(callback, hook)(trainer, module)
