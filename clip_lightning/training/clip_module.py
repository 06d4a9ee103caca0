"""One optimizer step of CLIP under Lightning: gradients, clipping, guard, AdamW, clamp; and the state of a run.

Optimization is manual: a step is one global batch whatever the micro-batch, and its learning rate, its random draws and
its place in the data are pure functions of (seed, samples seen). Precision is the module's own, since Lightning's would
scale and clip behind its back: the Trainer stays at 32-true. Nothing here waits for the device; Hugging Face's encoders
that mask padding do, once in each group of texts, to ask whether the mask hides anything.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from clip_lightning.config.lengths import Lengths, resolve_lengths
from clip_lightning.config.phases import phase_at, phase_sizes, phases_of
from clip_lightning.config.schema import Config
from clip_lightning.data.batches import Batch
from clip_lightning.data.order.skip_windows import SkipWindow
from clip_lightning.distributed import all_reduce_sum, rank_and_world
from clip_lightning.errors import UserError
from clip_lightning.loss import LossOutput, build_loss, needs_teacher
from clip_lightning.model.clip import CLIP, Features, build_clip
from clip_lightning.parallel.fsdp import ShardedStrategy, whole
from clip_lightning.reliability.nan_guard import SEARCHING, build_guard
from clip_lightning.training import batch_norm, sample_randomness
from clip_lightning.training.batch_invariance import check_padding
from clip_lightning.training.ema import EmaWeights
from clip_lightning.training.gradient_cache import cached_gradients, split
from clip_lightning.training.length_groups import LengthGroups, can_group, plan_groups
from clip_lightning.training.locked import LockedTowers
from clip_lightning.training.optimizer import build_optimizer
from clip_lightning.training.sample_randomness import sample_keys
from clip_lightning.training.schedule import build_schedule
from clip_lightning.training.teacher import Teacher, find_teacher

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Pairs(NamedTuple):
    """What the towers read of b pairs.

    Attributes:
        images: [b, 3, S, S], tokens: [b, L], lengths: [b].
        keys: [b], of random draws.
        lengths_on_host: [b], the lengths once more, on the CPU.
        samples_on_host: [b, 3], which samples they are for locked towers, on the CPU.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    keys: Tensor
    lengths_on_host: Tensor
    samples_on_host: Tensor


@dataclass(frozen=True)
class StepMetrics:
    """One step's numbers; the tensors are [] on the device, and reading one waits for it.

    Attributes:
        loss, accuracy: of the global batch; accuracy is image to text, top 1, within the batch.
        chance_loss: ln N, what guessing costs under the softmax loss; None under others.
        gradient_norm: before clipping.
        logit_scale: after the step.
        is_skipped: 1 where loss or gradient was not finite and the step did nothing.
    """

    loss: Tensor
    accuracy: Tensor
    chance_loss: float | None
    gradient_norm: Tensor
    learning_rate: float
    logit_scale: Tensor
    is_skipped: Tensor
    samples_seen: int


class ClipModule(LightningModule):
    """The model with its loss and everything that a training step needs.

    Attributes:
        model: the towers and the scale.
        lengths: of the run, in samples; set before the first step.
        samples_seen: pairs of finished steps; kept in this module's own part of a checkpoint.
        skip_windows: windows of the data that the run leaves out; likewise.
        last_step: numbers of the newest step.
        averaged: the running average of weights, where `compute.ema_decay` asks for one.
        teacher: the frozen model that the loss learns from, where it does.
        locked: keeps what locked towers gave.
        lengths_on_host: int64 [b], tokens of the newest batch's captions, on the CPU.
    """

    last_step: StepMetrics
    lengths: Lengths

    def __init__(self, config: Config, lengths: Lengths | None = None) -> None:
        """Builds the model on the CPU.

        Args:
            lengths: of the run; None: resolved when a fit starts, from the pairs that the data module has counted.

        Raises:
            UserError: something cannot be built or does not fit.
        """
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        self.global_batch = config.compute.global_batch
        self.samples_seen = 0
        with torch.random.fork_rng(devices=[]):  # all is built on the CPU
            torch.manual_seed(config.compute.seed)
            self.model: CLIP = build_clip(config.model, config.loss, phase_sizes(config)).to(
                memory_format=torch.channels_last
            )
        check_padding(self.model.text, config.model.text)
        self.loss = build_loss(config.loss)
        self.teacher = Teacher(find_teacher(config)) if needs_teacher(self.loss) else None
        self.micro_batch = config.cluster.micro_batch
        self._halved_micro_batch: int | None = None
        self.guard = build_guard(config.compute)
        self.skip_windows: tuple[SkipWindow, ...] = ()
        decay = config.compute.ema_decay
        self.ema = EmaWeights(self.model, decay) if decay is not None else None
        self._randomness = sample_randomness.apply(self.model)
        share = self.global_batch // (config.cluster.nodes * config.cluster.devices)
        self._batch_statistics = batch_norm.apply(
            self.model,
            group=min(config.compute.batch_norm_samples, self.global_batch),
            share=share,
            micro_batch=self.micro_batch or share,
        )
        self._length_groups = None
        if can_group(config.model.text, sample_randomness.is_random(self.model.text)):
            self._length_groups = LengthGroups(self.model.text)
        self.locked = LockedTowers(self.model)
        self.lengths_on_host = self._samples_on_host = torch.empty(0)
        self._scaler: torch.amp.GradScaler | None = None
        if lengths is not None:
            self._set_lengths(lengths)

    def _set_lengths(self, lengths: Lengths) -> None:
        self.lengths = lengths
        self.phases = phases_of(self.config, total_samples=lengths.total, epoch_samples=lengths.epoch_samples)
        self.schedule = build_schedule(
            self.config.compute, total_samples=lengths.total, epoch_samples=lengths.epoch_samples
        )

    def setup(self, stage: str) -> None:
        """Resolves the run's lengths where the constructor had none. Raises: UserError without a data module."""
        if hasattr(self, "lengths"):
            return
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            raise UserError("ClipModule has no lengths: call fit(module, datamodule), or pass ClipModule its lengths")
        self._set_lengths(resolve_lengths(self.config, datamodule.num_samples))

    def configure_model(self) -> None:
        """Hands the model to a strategy that shards it."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.shard(self.model)
            # A block is gathered for each group, and all ranks have to gather equally often.
            self._length_groups = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; its learning rate is set before every step."""
        if self.config.compute.precision == "fp16":
            self._scaler = torch.amp.GradScaler(self.device.type)
        return build_optimizer(self.model, self.config.optimizer, self.schedule.peak, self.device)

    def on_train_start(self) -> None:
        """Connects ranks that share batch statistics; begins the average of weights from where the run stands."""
        self._batch_statistics.connect()
        if self.ema is not None:
            self.ema.begin()

    def forward(self, pairs: Pairs) -> Features:
        """Features of pairs in the precision of the run; float32."""
        self._randomness.keys = pairs.keys
        if self._length_groups is not None:
            self._length_groups.plan = plan_groups(pairs.lengths_on_host, self.device)
        with self.autocast(), self.locked.at(pairs.samples_on_host):
            features: Features = self.model(pairs.images, pairs.tokens, pairs.lengths)
        if self._length_groups is not None:
            self._length_groups.plan = None
        return features

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of the towers."""
        dtype = AUTOCAST[self.config.compute.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Keeps what is read on the host, where reading it waits for nothing: lengths, and who the samples are."""
        self.lengths_on_host, self._samples_on_host = batch.lengths, self.locked.samples(batch)
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimizer step on this rank's share of the global batch; see `last_step` for its numbers."""
        optimizer: Any = self.optimizers()
        learning_rate = self.schedule.learning_rate(self.samples_seen)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        phase = phase_at(self.phases, self.samples_seen)
        if any(phase.patch_dropout for phase in self.phases):  # else a user's own tower says how much it leaves out
            self._randomness.patch_dropout = phase.patch_dropout
        optimizer.zero_grad(set_to_none=True)
        output = self._gradients(self._pairs(batch))
        if self._scaler is not None:
            self._scaler.unscale_(optimizer.optimizer)
        # Also the norm, which is the same already but for rounding on unlike machines: ranks must decide alike.
        both = torch.stack([output.loss.detach().reshape(()), self._clip()])
        loss, norm = all_reduce_sum(both) / rank_and_world()[1]
        is_skipped = (~(loss.isfinite() & norm.isfinite())).float()
        optimizer.optimizer.found_inf = is_skipped
        optimizer.step()
        state = is_skipped
        if self._scaler is not None:
            scale = self._scaler.scale(torch.ones_like(loss))
            state = is_skipped * torch.where(loss.isfinite() & (scale > 1), SEARCHING, 1.0)
            self._scaler.update()
        self.model.clamp_logit_scale()
        self._batch_statistics.commit(is_skipped)
        if self.ema is not None:
            self.ema.update(is_skipped)
        self.guard.record(torch.stack([state, loss, norm]), self.samples_seen, batch.sample_ids, phase.start)
        self.samples_seen += self.global_batch
        self.last_step = StepMetrics(
            loss=loss,
            accuracy=output.accuracy,
            chance_loss=math.log(self.global_batch) if self.config.loss.name == "softmax" else None,
            gradient_norm=norm,
            learning_rate=learning_rate,
            logit_scale=self.model.current_logit_scale().reshape(()),
            is_skipped=is_skipped,
            samples_seen=self.samples_seen,
        )

    def on_train_end(self) -> None:
        """Reads the last steps' flags."""
        self.guard.flush()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is neither a weight nor the optimizer's."""
        self.guard.flush()
        checkpoint["samples_seen"] = self.samples_seen
        checkpoint["halved_micro_batch"] = self._halved_micro_batch
        checkpoint["guard"] = self.guard.state_dict()
        checkpoint["skip_windows"] = [list(window) for window in self.skip_windows]
        if self.ema is not None:
            checkpoint["ema_weights"] = self.ema.average
        if self._scaler is not None:
            checkpoint["scaler"] = self._scaler.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from what `on_save_checkpoint` kept."""
        self.samples_seen = checkpoint["samples_seen"]
        self._halved_micro_batch = checkpoint["halved_micro_batch"]
        if self._halved_micro_batch is not None:
            self.micro_batch = min(self.micro_batch or self.global_batch, self._halved_micro_batch)
        self.guard.load_state_dict(checkpoint["guard"])
        # A checkpoint of before a rollback does not know of its window.
        known = {SkipWindow(*window) for window in checkpoint["skip_windows"]}
        self.skip_windows = tuple(sorted(known.union(self.skip_windows)))
        # Either is absent where `allow_changed` lets a run go on that began without: it begins here.
        if self.ema is not None and "ema_weights" in checkpoint:
            self.ema.load(checkpoint["ema_weights"])
        if self._scaler is not None and "scaler" in checkpoint:
            self._scaler.load_state_dict(checkpoint["scaler"])

    def _pairs(self, batch: Batch) -> Pairs:
        """The batch as the towers read it, with the keys of its random draws."""
        expected = self.global_batch // rank_and_world()[1]
        if len(batch.images) != expected:
            raise UserError(
                f"a rank's share has {len(batch.images)} pairs instead of {expected}, "
                f"compute.global_batch={self.global_batch} over {rank_and_world()[1]} ranks"
            )
        keys = sample_keys(self.config.compute.seed, batch.positions // self.lengths.epoch_samples, batch.sample_ids)
        return Pairs(batch.images, batch.tokens, batch.lengths, keys, self.lengths_on_host, self._samples_on_host)

    def _gradients(self, pairs: Pairs) -> LossOutput:
        """Puts the gradient of the global batch's loss into the parameters.

        A step that does not fit into memory is done again with half the micro-batch, which gives the same gradient.
        """
        while True:
            # What no key reaches (a user's own random layer) still depends on the step alone.
            numbers = torch.tensor([[self.samples_seen], [rank_and_world()[0]]])
            torch.manual_seed(int(sample_keys(self.config.compute.seed, *numbers)))
            try:
                return self._gradients_once(pairs)
            except torch.OutOfMemoryError as error:
                self._halve_micro_batch(len(pairs.images), error)
            # Out of the handler, whose traceback holds the step's tensors.
            self.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def _gradients_once(self, pairs: Pairs) -> LossOutput:
        self.locked.begin_step()
        micro_batch = self.micro_batch or len(pairs.images)
        loss: Callable[..., LossOutput] = self.loss
        if self.teacher is not None:
            taught = self.teacher.features(*pairs[:3], batch=micro_batch, autocast=self.autocast())
            loss = partial(loss, **taught)
        if micro_batch < len(pairs.images):
            pieces = [Pairs(*piece) for piece in split(pairs, micro_batch)]
            return cached_gradients(
                self, loss, pieces, backward=self._backward, no_sync=self._no_sync, device=self.device
            )
        output = loss(*self(pairs))
        self._backward(output.loss)
        return output

    def _halve_micro_batch(self, share: int, error: torch.OutOfMemoryError) -> None:
        """Raises: UserError where half of it cannot be: several ranks, groups of batch norm, or a single pair."""
        micro_batch = self.micro_batch or share
        half = micro_batch // 2
        # Other ranks already wait in a collective of the broken step, and would wait for ever.
        if rank_and_world()[1] > 1 or not half or not self._batch_statistics.fits(half):
            raise UserError(
                f"cluster.micro_batch={micro_batch} does not fit into the memory of {self.device}: write a smaller one"
            ) from error
        self._batch_statistics.forget()
        self.micro_batch = self._halved_micro_batch = half
        rank_zero_warn(f"out of memory with {micro_batch} pairs in a forward pass: going on with {half}")

    def _backward(self, value: Tensor) -> None:
        self.manual_backward(value if self._scaler is None else self._scaler.scale(value))

    def _no_sync(self) -> AbstractContextManager[None]:
        no_sync = getattr(self.trainer.model, "no_sync", None) or getattr(self.trainer.strategy, "no_sync", None)
        return nullcontext() if no_sync is None else no_sync()

    def _clip(self) -> Tensor:
        """Scales the gradient down to `compute.gradient_clip`; returns its norm before, [] float32."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        largest = self.config.compute.gradient_clip
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if largest is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return norm.detach()
