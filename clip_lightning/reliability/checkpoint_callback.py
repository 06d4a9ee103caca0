"""Saves and restores a training run: what goes into a checkpoint, and when.

Training waits while a copy of the state is made in the host's memory; a thread writes it while training continues. Each
rank copies and writes what it holds, so that nothing is gathered. The state is restored when the model is on its device
and the optimizer exists, before the loader is made: what the loader yields follows from `samples_seen` alone.
"""

import copy
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clip_lightning.errors import AgreedCheckpointError, AgreedError, UserError
from clip_lightning.records import Record
from clip_lightning.reliability.background import Background
from clip_lightning.reliability.checkpoint import Checkpoint, CheckpointFolder, open_checkpoint, shard_name
from clip_lightning.reliability.optimizer_state import (
    bytes_to_come,
    matched_by_name,
    optimizer_laid_out,
    parameter_names,
)
from clip_lightning.reliability.rank_group import RankGroup
from clip_lightning.reliability.replica_check import check_replicas
from clip_lightning.reliability.shards import laid_out, on_host, own_rows, tree_bytes

WEIGHTS, TRAINING = "weights", "training"
# How long a failed run waits for a checkpoint that is being written: other ranks may have exited.
LAST_WAIT_SECONDS = 60


class CheckpointCallback(Callback):
    """Writes checkpoints at a cadence in samples and in minutes, and where training ends.

    Attributes:
        seconds: for which training has waited for checkpoints, to be left out of throughput.
        restored: the checkpoint that this start resumes from, or None.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        every: int,
        minutes: float | None = None,
        resume: Checkpoint | None,
        about: Mapping[str, Any],
        sink: Callable[[list[Record]], None] = lambda records: None,
        on_saved: Callable[[], None] = lambda: None,
    ) -> None:
        """Args.

        every: samples between checkpoints; 0: not by samples.
        minutes: longest time between checkpoints, by rank 0's clock; None: not by time.
        resume: the checkpoint to resume from; only rank 0's is used.
        about: plain values for the manifest: science, data fingerprint, versions.
        sink: takes the records of each checkpoint that was written, on rank 0.
        on_saved: called on rank 0 after each checkpoint that was written.
        """
        self.folder, self.every, self.minutes, self.about = folder, every, minutes, dict(about)
        self.sink, self.on_saved = sink, on_saved
        self.restored = resume
        self.seconds = 0.0
        self._ranks = RankGroup()
        self._samples_before = 0
        self._saved_at: int | None = None
        self._saved_time = time.monotonic()
        self._is_due = False
        self._writing: Background[Path | None] | None = None
        self._stall = 0.0

    @property
    def is_late(self) -> bool:
        """Whether the newest checkpoint is older than `minutes` by this process's clock."""
        return self.minutes is not None and time.monotonic() - self._saved_time >= 60 * self.minutes

    def request(self) -> None:
        """Lets the step that ends now save; to be called on every rank before this callback's turn."""
        self._is_due = True

    def go_back(self, at_most: int) -> int:
        """Makes the next fit start from the newest checkpoint of at most so many samples. To be called on every rank.

        That checkpoint is not overwritten, since it may be the only good one: a run that is killed before its next
        one reaches the same divergence again, and goes back again.

        Returns: its samples; 0: the run starts over, since the place is before its first checkpoint.
        Raises: AgreedCheckpointError on every rank if there should be a checkpoint and none verifies.
        """
        self._finish()
        self.restored, place = None, 0
        if self._ranks.rank == 0:
            self.restored = self.folder.newest(at_most)
            if self.restored is None and self.every and at_most >= self.every:
                place = -1
            else:
                place = self.restored.samples_seen if self.restored else 0
                self.folder.remove_after(place)
        place = self._ranks.exchange(place)[0]
        if place < 0:
            raise AgreedCheckpointError(
                f"{self.folder.path} has no checkpoint to go back to, at or before {at_most:,} samples; take an older "
                "one from elsewhere, or start over with fresh=true"
            )
        self._is_due, self._saved_at = False, None
        return place

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores weights, optimizer and the module's own state on every rank, and sets the loader's position."""
        self._ranks = RankGroup.connected()
        path = self._ranks.exchange(self.restored.path if self.restored else None)[0]
        if path is not None:
            self.restored = self.restored or open_checkpoint(path, verify=False)
            self._restore(self.restored, trainer, pl_module)
            self._saved_at = self.restored.samples_seen
        self._check_folder(trainer, pl_module)
        self._saved_time = time.monotonic()
        self._samples_before = _samples_seen(pl_module)
        trainer.datamodule.samples_seen = self._samples_before  # type: ignore[attr-defined]
        trainer.datamodule.skip_windows = pl_module.skip_windows  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when the step passed a multiple of `every`; among skipped steps and spikes not before they end."""
        if self._writing is not None and self._writing.is_done:
            self._finish()
        before, self._samples_before = self._samples_before, _samples_seen(pl_module)
        self._is_due |= bool(self.every) and before // self.every < self._samples_before // self.every
        if self._is_due and not pl_module.guard.is_in_doubt():  # type: ignore[union-attr, operator]
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves where training stops, and waits until the checkpoint is written.

        Raises: AgreedCheckpointError on every rank if it cannot be written: the steps after the newest would be lost.
        """
        self.save(trainer, pl_module)
        self._finish()
        if self._saved_at is None:
            newest = next(iter(self.folder.numbers()), None)
            raise AgreedCheckpointError(
                f"{self.folder.path}: the last checkpoint, at {_samples_seen(pl_module):,} samples, could not be "
                "written; make room and run the same command again: it resumes "
                + (f"from {newest:,} samples" if newest else "from the start")
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Waits for a checkpoint that is being written."""
        if self._writing is not None:
            self._writing.wait(LAST_WAIT_SECONDS)

    def save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to save, unless this position is saved already; to be called on every rank.

        Raises: AgreedNodeError on every rank if their weights differ.
        """
        start = time.perf_counter()
        self._is_due = False
        self._finish()
        samples_seen = _samples_seen(pl_module)
        if self._saved_at != samples_seen:
            check_replicas(dict(pl_module.named_parameters()), self._ranks)
            parts = _parts(_state(trainer, pl_module), self._ranks.rank)
            self._saved_at = samples_seen
            self._writing = Background(lambda: self.folder.save(samples_seen, parts, self.about, self._ranks))
        self._saved_time = time.monotonic()
        self._stall = time.perf_counter() - start
        self.seconds += self._stall

    def _finish(self) -> None:
        """Waits for the checkpoint that is being written, and records its times."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        if writing.result() is None:
            self._saved_at = None
        elif self._ranks.rank == 0:
            self.on_saved()
            measured = {"checkpoint_stall_seconds": self._stall, "checkpoint_write_seconds": writing.seconds}
            at = self._saved_at or 0
            self.sink([Record(what=what, value=value, samples_seen=at) for what, value in measured.items()])

    def _check_folder(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises AgreedError on every rank if the folder cannot take a checkpoint."""
        num_bytes = tree_bytes(_state(trainer, pl_module)) + sum(map(bytes_to_come, trainer.optimizers))
        problems: list[str] = []
        if self._ranks.rank == 0:
            try:
                self.folder.check_writable(num_bytes)
            except UserError as error:
                problems = error.problems
        if problems := self._ranks.exchange(problems)[0]:
            raise AgreedError(*problems)

    def _restore(self, checkpoint: Checkpoint, trainer: Trainer, pl_module: LightningModule) -> None:
        weights, training = checkpoint.saved(WEIGHTS), checkpoint.saved(TRAINING)
        own = pl_module.state_dict()
        if unlike := [name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape]:
            raise AgreedCheckpointError(
                f"{checkpoint.path}: {min(unlike)} has shape {tuple(weights[min(unlike)].shape)} there and "
                f"{tuple(own[min(unlike)].shape)} in this config; allow_changed takes no other sizes of the model"
            )
        saved = {name: laid_out(weights[name], own[name]) for name in weights.keys() & own.keys()}
        pl_module.load_state_dict(own | saved)
        self._report("weights that start at their initial value", own.keys() - saved.keys())
        self._report("weights of the checkpoint that are dropped", weights.keys() - saved.keys())
        names = training.get("parameter_names") or [None] * len(training["optimizers"])
        for optimizer, state, before in zip(trainer.optimizers, training["optimizers"], names, strict=True):
            now = parameter_names(optimizer, pl_module)
            if before is None and len(now) != sum(len(group["params"]) for group in state["param_groups"]):
                raise AgreedCheckpointError(
                    f"{checkpoint.path}: the optimizer has other parameters, and this checkpoint has no names for "
                    "them; continue with the earlier settings, or start over with fresh=true"
                )
            if before is not None and before != now:
                self._report("parameters whose optimizer state starts from zero", set(now) - set(before))
                state = matched_by_name(state, before, now, optimizer)
            optimizer.load_state_dict(optimizer_laid_out(state, optimizer))
        trainer.precision_plugin.load_state_dict(training["precision"])
        pl_module.on_load_checkpoint(training["module"])
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if state := training.get("callbacks", {}).get(callback.state_key):
                callback.load_state_dict(copy.deepcopy(state))

    def _report(self, what: str, names: Collection[str]) -> None:
        """Reports what `allow_changed` changes, on rank 0."""
        if names and self._ranks.rank == 0:
            shown = [name.removeprefix("model.") for name in sorted(names)]
            more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
            self.folder.notify(f"{what}: {', '.join(shown[:3])}{more}")


def model_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """The weights of the CLIP model in a checkpoint, without the training module's prefix or its further state."""
    prefix = "model."
    weights = checkpoint.load(WEIGHTS)
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _state(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """All that a resume needs. The optimizer's state numbers its parameters, in the same way under every strategy."""
    module: dict[str, Any] = {}
    pl_module.on_save_checkpoint(module)
    return {
        WEIGHTS: pl_module.state_dict(),
        TRAINING: {
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "parameter_names": [parameter_names(optimizer, pl_module) for optimizer in trainer.optimizers],
            "precision": trainer.precision_plugin.state_dict(),
            "module": module,
            "callbacks": _callback_states(trainer),
        },
    }


def _callback_states(trainer: Trainer) -> dict[str, Any]:
    """The state of every callback, the user's too, as Lightning saves it; one that is not plain values is left out.

    Checkpoints are read without executing pickled code, which could not restore other objects.
    """
    states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}  # type: ignore[attr-defined]
    return {key: state for key, state in states.items() if state and _is_plain(state)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)


def _parts(state: dict[str, Any], rank: int) -> dict[str, Any]:
    """Copies of what this rank writes: rank 0 everything but other ranks' rows, the others their rows."""
    if rank == 0:
        return {part: on_host(tree) for part, tree in state.items()}
    found = {part: own_rows(tree) for part, tree in state.items()}
    return {shard_name(part, shard): rows for part, (shard, rows) in found.items() if rows}


def _samples_seen(module: LightningModule) -> int:
    return int(module.samples_seen)  # type: ignore[arg-type]
