"""One optimizer step of CLIP under Lightning: gradients, clipping, guard, optimizer, clamp; and the state of a run.

Optimization is manual: a step is one global batch whatever the micro-batch, and its learning rate, its random draws and
its place in the data are pure functions of (seed, samples seen). Precision is the module's own, since Lightning's would
scale and clip out of its sight: the Trainer stays at 32-true. Nothing here waits for the device, with two exceptions:
Hugging Face's encoders that mask padding read once per group of texts whether the mask hides anything, and an optimizer
that cannot skip a step on the device (`StepSkipper`) reads whether to.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from clip_lightning.config.lengths import Lengths, resolve_lengths
from clip_lightning.config.phases import Phase, phase_at, phase_sizes, phases_of
from clip_lightning.config.schema import Config
from clip_lightning.data.batches import Batch
from clip_lightning.data.order.skip_windows import SkipWindow
from clip_lightning.distributed import all_reduce_sum, rank_and_world
from clip_lightning.errors import UserError
from clip_lightning.loss import LossOutput, build_loss, needs_pair_keys, needs_teacher
from clip_lightning.model.clip import CLIP, Features, build_clip
from clip_lightning.parallel.fsdp import ShardedStrategy, full_tensor
from clip_lightning.reliability.nan_guard import SEARCHING, build_guard
from clip_lightning.reliability.out_of_memory import is_out_of_memory, out_of_memory_as
from clip_lightning.training import lightning_checkpoint
from clip_lightning.training.batch_invariance import check_padding
from clip_lightning.training.ema import EmaWeights
from clip_lightning.training.gradient_cache import cached_gradients, split
from clip_lightning.training.length_groups import plan_groups
from clip_lightning.training.optimizer import build_optimizer, step_unless
from clip_lightning.training.pair_keys import pair_keys
from clip_lightning.training.prepare import prepare_model
from clip_lightning.training.sample_randomness import sample_keys
from clip_lightning.training.schedule import build_schedule
from clip_lightning.training.step_context import StepContext
from clip_lightning.training.teacher import Teacher, find_teacher
from clip_lightning.training.trainer_checks import trainer_problems

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_SMALLER_STATE = "write cluster=fsdp with more devices, or an optimizer with less state"


class Pairs(NamedTuple):
    """What the towers read of b pairs.

    Attributes:
        images: [b, 3, S, S], tokens: [b, L], lengths: [b].
        keys: [b], of random draws.
        lengths_on_host: [b], the lengths once more, on the CPU.
        samples_on_host: [b, 3], which samples they are for locked towers, on the CPU.
        sample_ids: [b].
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    keys: Tensor
    lengths_on_host: Tensor
    samples_on_host: Tensor
    sample_ids: Tensor


@dataclass(frozen=True)
class StepMetrics:
    """One step's numbers; the tensors are [] on the device, and reading one waits for it.

    Attributes:
        loss, accuracy: of the global batch; accuracy is image to text, top 1, within the batch.
        chance_loss: ln N, what guessing costs under the softmax loss; None under others.
        gradient_norm: before clipping.
        logit_scale, logit_bias: after the step; None where the model has no bias.
        is_skipped: 1 where loss or gradient was not finite and the step did nothing.
    """

    loss: Tensor
    accuracy: Tensor
    chance_loss: float | None
    gradient_norm: Tensor
    learning_rate: float
    logit_scale: Tensor
    logit_bias: Tensor | None
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
        ema: the running average of weights, where `compute.ema_decay` is set.
        teacher: the frozen model that the loss learns from, where it does.
        locked: keeps the features of locked towers.
        lengths_on_host: int64 [b], tokens of the newest batch's captions, on the CPU.
    """

    last_step: StepMetrics
    lengths: Lengths

    def __init__(self, config: Config, lengths: Lengths | None = None) -> None:
        """Builds the model on the CPU.

        Args:
            lengths: of the run. None: resolved when a fit starts, from the pairs that the data module has counted; the
                module then also writes its numbers to the Trainer's loggers, which a run's reporter does otherwise.

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
            model = build_clip(config.model, config.loss, phase_sizes(config))
        self.model: CLIP = model.to(memory_format=torch.channels_last)
        check_padding(self.model.text, config.model.text)
        self.loss = build_loss(config.loss)
        self.teacher = Teacher(find_teacher(config)) if needs_teacher(self.loss) else None
        self.micro_batch = config.cluster.micro_batch
        self._halved_micro_batch: int | None = None
        self.guard = build_guard(config.compute)
        self.skip_windows: tuple[SkipWindow, ...] = ()
        decay = config.compute.ema_decay
        self.ema = EmaWeights(self.model, decay) if decay is not None else None
        self._prepared = prepare_model(self.model, config, self.micro_batch)
        self.locked = self._prepared.locked
        self.lengths_on_host = self._samples_on_host = torch.empty(0)
        self._scaler: torch.amp.GradScaler | None = None
        self._is_part_of_run = lengths is not None
        if lengths is not None:
            self._set_lengths(lengths)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, **settings: Any) -> "ClipModule":  # type: ignore[override]
        """The module of a checkpoint that Lightning's Trainer has written; see `lightning_checkpoint.load`."""
        return lightning_checkpoint.load(cls, checkpoint_path, **settings)

    def configure_callbacks(self) -> list[Callback]:
        """Adds none; Lightning calls this before anything else of a fit. Raises: UserError for a Trainer's argument."""
        if problems := list(trainer_problems(self.trainer, self.config)):
            raise UserError(*problems)
        return []

    def setup(self, stage: str) -> None:
        """Resolves the run's lengths where the constructor had none. Raises: UserError without a data module."""
        if hasattr(self, "lengths"):
            return
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            raise UserError("ClipModule has no lengths: call fit(module, datamodule), or pass ClipModule its lengths")
        self._set_lengths(resolve_lengths(self.config, datamodule.num_samples))

    def configure_model(self) -> None:
        """Shards the model under a strategy that does; the last of what `prepare_model` lists."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            self.trainer.strategy.shard(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of the config; its learning rate is set before every step."""
        if self.config.compute.precision == "fp16":
            self._scaler = torch.amp.GradScaler(self.device.type)
        return build_optimizer(self.model, self.config.optimizer, self.schedule.peak)

    def on_train_start(self) -> None:
        """Connects ranks that share batch statistics; begins the average of weights from their state now."""
        self._prepared.batch_statistics.connect()
        if self.ema is not None:
            self.ema.begin()

    def forward(self, pairs: Pairs) -> Features:
        """Features of pairs in training, in the precision of the run; float32."""
        # A block of a sharded model is gathered for each group, and all ranks have to gather equally often.
        is_grouped = self._prepared.has_length_groups and not isinstance(self.trainer.strategy, ShardedStrategy)
        self._prepared.step.context = StepContext(
            keys=pairs.keys,
            patch_dropout=self._phase().patch_dropout if any(phase.patch_dropout for phase in self.phases) else None,
            samples=pairs.samples_on_host,
            plan=plan_groups(pairs.lengths_on_host, self.device) if is_grouped else None,
        )
        with self.autocast():
            features: Features = self.model(pairs.images, pairs.tokens, pairs.lengths)
        return features

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of the towers."""
        dtype = AUTOCAST[self.config.compute.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Keeps what is read on the host, where reading it waits for nothing: lengths, and which samples these are."""
        self.lengths_on_host, self._samples_on_host = batch.lengths, self.locked.samples(batch)
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimizer step on this rank's share of the global batch; see `last_step` for its numbers."""
        optimizer: Any = self.optimizers()
        learning_rate = self.schedule.learning_rate(self.samples_seen)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        output = self._gradients(self._pairs(batch))
        if self._scaler is not None:
            self._scaler.unscale_(optimizer.optimizer)
        # Also the norm, which is the same already but for rounding on unlike hardware: ranks must decide alike.
        both = torch.stack([output.loss.detach().reshape(()), self._clip()])
        loss, norm = all_reduce_sum(both) / rank_and_world()[1]
        is_skipped = (~(loss.isfinite() & norm.isfinite())).float()
        with out_of_memory_as(f"the optimizer's state does not fit into the memory of {self.device}: {_SMALLER_STATE}"):
            step_unless(optimizer, is_skipped)
        state = is_skipped if self._scaler is None else self._searched(loss, is_skipped)
        self.model.clamp_logit_scale()
        self._prepared.batch_statistics.commit(is_skipped)
        if self.ema is not None:
            self.ema.update(is_skipped)
        numbers = torch.stack([state, loss, norm])
        self.guard.record(numbers, self.samples_seen, batch.sample_ids, self._phase().start)
        self.samples_seen += self.global_batch
        self.last_step = StepMetrics(
            loss=loss,
            accuracy=output.accuracy,
            chance_loss=math.log(self.global_batch) if self.config.loss.name == "softmax" else None,
            gradient_norm=norm,
            learning_rate=learning_rate,
            logit_scale=self.model.current_logit_scale().reshape(()),
            logit_bias=self.model.current_logit_bias(),
            is_skipped=is_skipped,
            samples_seen=self.samples_seen,
        )
        self._log_step()
        if self.samples_seen >= self.lengths.total:  # the run's length is the config's, not the Trainer's
            self.trainer.should_stop = True

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
        lightning_checkpoint.add_config(checkpoint, self.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continues from what `on_save_checkpoint` kept."""
        self.samples_seen = checkpoint["samples_seen"]
        self._halved_micro_batch = checkpoint["halved_micro_batch"]
        if self._halved_micro_batch is not None:
            self.micro_batch = min(self.micro_batch or self.global_batch, self._halved_micro_batch)
        self.guard.load_state_dict(checkpoint["guard"])
        # Checkpoints from before a rollback lack its skip window.
        known = {SkipWindow(*window) for window in checkpoint["skip_windows"]}
        self.skip_windows = tuple(sorted(known.union(self.skip_windows)))
        # Either is absent where `allow_changed` lets a run continue that began without: it begins here.
        if self.ema is not None and "ema_weights" in checkpoint:
            self.ema.load(checkpoint["ema_weights"])
        if self._scaler is not None and "scaler" in checkpoint:
            self._scaler.load_state_dict(checkpoint["scaler"])

    def _set_lengths(self, lengths: Lengths) -> None:
        sizes = {"total_samples": lengths.total, "epoch_samples": lengths.epoch_samples}
        self.lengths = lengths
        self.phases = phases_of(self.config, **sizes)
        self.schedule = build_schedule(self.config.compute, **sizes)

    def _phase(self) -> Phase:
        return phase_at(self.phases, self.samples_seen)

    def _pairs(self, batch: Batch) -> Pairs:
        """The batch as the towers read it, with the keys of its random draws."""
        expected = self.global_batch // rank_and_world()[1]
        if len(batch.images) != expected:
            raise UserError(
                f"a rank's share has {len(batch.images)} pairs instead of {expected}, "
                f"compute.global_batch={self.global_batch} over {rank_and_world()[1]} ranks"
            )
        epochs = batch.positions // self.lengths.epoch_samples
        keys = sample_keys(self.config.compute.seed, epochs, batch.sample_ids)
        on_host = self.lengths_on_host, self._samples_on_host
        return Pairs(batch.images, batch.tokens, batch.lengths, keys, *on_host, batch.sample_ids)

    def _gradients(self, pairs: Pairs) -> LossOutput:
        """Puts the gradient of the global batch's loss into the parameters.

        A step that does not fit into memory is done again with half the micro-batch, which gives the same gradient.
        """
        while True:
            # What no key reaches (a user's own random layer) still depends on the step alone.
            numbers = torch.tensor([[self.samples_seen], [rank_and_world()[0]]])
            torch.manual_seed(int(sample_keys(self.config.compute.seed, *numbers)))
            try:
                with self._prepared.step.entered():
                    return self._gradients_once(pairs)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_micro_batch(len(pairs.images), error)
            # Out of the handler, whose traceback holds the step's tensors.
            self.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def _gradients_once(self, pairs: Pairs) -> LossOutput:
        self.locked.begin_step()
        micro_batch = self.micro_batch or len(pairs.images)
        loss: Callable[..., LossOutput] = self.loss
        if self.teacher is not None:
            targets = self.teacher.features(*pairs[:3], batch=micro_batch, autocast=self.autocast())
            loss = partial(loss, **targets)
        if needs_pair_keys(self.loss):
            loss = partial(loss, pair_keys=pair_keys(pairs.tokens, pairs.lengths, pairs.sample_ids))
        if micro_batch < len(pairs.images):
            pieces = [Pairs(*piece) for piece in split(pairs, micro_batch)]
            return cached_gradients(
                self, loss, pieces, backward=self._backward, no_sync=self._no_sync, device=self.device
            )
        output = loss(*self(pairs))
        self._backward(output.loss)
        return output

    def _halve_micro_batch(self, share: int, error: BaseException) -> None:
        """Raises: UserError where half of it cannot be: several ranks, groups of batch norm, or a single pair."""
        micro_batch = self.micro_batch or share
        half = micro_batch // 2
        # Other ranks already wait in a collective of the broken step, and would wait forever; and DDP, also on one
        # rank, cannot repeat a backward pass that broke.
        is_parallel = isinstance(self.trainer.strategy, ParallelStrategy)
        if is_parallel or not half or not self._prepared.batch_statistics.fits(half):
            raise UserError(
                f"cluster.micro_batch={micro_batch} does not fit into the memory of {self.device}: write a smaller one"
            ) from error
        self._prepared.batch_statistics.forget()
        self.micro_batch = self._halved_micro_batch = half
        rank_zero_warn(f"out of memory with {micro_batch} pairs in a forward pass: continuing with {half}")

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
        norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
        if largest is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return norm.detach()

    def _searched(self, loss: Tensor, is_skipped: Tensor) -> Tensor:
        """The step's state for the guard, where fp16's scale of the loss may have been too large; updates the scale."""
        assert self._scaler is not None
        scale = self._scaler.scale(torch.ones_like(loss))
        self._scaler.update()
        return is_skipped * torch.where(loss.isfinite() & (scale > 1), SEARCHING, 1.0)

    def _log_step(self) -> None:
        """Hands the step's numbers to Lightning, as tensors on the device: callbacks read them, no step waits."""
        every, step = self.lengths.log_every, self.last_step
        is_due = bool(every) and (step.samples_seen - self.global_batch) // every < step.samples_seen // every
        if self._is_part_of_run and not is_due:
            return
        values = {
            "train/loss": step.loss,
            "train/accuracy": step.accuracy,
            "train/grad_norm": step.gradient_norm,
            "train/logit_scale": step.logit_scale,
            "train/lr": torch.tensor(step.learning_rate),  # on the CPU: a copy to the device would wait for it
            "train/samples_seen": torch.tensor(float(step.samples_seen)),
        }
        values |= {"train/logit_bias": step.logit_bias} if step.logit_bias is not None else {}
        # One owner per number: in a run its reporter writes to the loggers.
        self.log_dict(values, on_step=True, on_epoch=False, logger=not self._is_part_of_run)
