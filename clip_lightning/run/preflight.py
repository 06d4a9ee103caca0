"""What can fail before the first step, tried before the first step, and everything wrong told at once.

The data is indexed, the model is built on the meta device (names, shapes, pretrained files, parameters, FLOPs,
activations: no memory), the tokenizer and the evaluation tasks are looked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from clip_lightning.config import duration
from clip_lightning.config.phases import Phase, phase_at, phase_lengths, phases_of
from clip_lightning.config.schema import Config
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.tasks import ZeroShotTask, build_tasks
from clip_lightning.loss import build_loss
from clip_lightning.model.clip import CLIP, build_clip
from clip_lightning.model.flops import Flops, count_flops
from clip_lightning.parallel import fsdp
from clip_lightning.reliability.checkpoint import write_atomically
from clip_lightning.run.tracker import wandb_mode
from clip_lightning.tokenizer import FILE_NAME, Tokenizer, build_tokenizer
from clip_lightning.training.teacher import find_teacher

# Captions that a tokenizer of the run's own is trained on.
TOKENIZER_CAPTIONS = 100_000
_Built = TypeVar("_Built")


@dataclass(frozen=True)
class Lengths:
    """The durations of a config in samples; whole steps each. The margin is 0 in a run that does not roll back."""

    total: int
    checkpoint_every: int
    keep_every: int
    eval_every: int
    log_every: int
    rollback_margin: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank's training step, estimated: everything but the library's own."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    teacher: int = 0

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.teacher


@dataclass(frozen=True)
class Preflight:
    """What stands before training begins.

    Attributes:
        flops: forward FLOPs of one sample by tower, in each phase of the run.
        is_locked: whether the image tower, and whether the text tower, is never gone back through.
        num_checks: how many things were tried.
    """

    datamodule: ContrastiveDataModule
    lengths: Lengths
    tasks: list[ZeroShotTask]
    wandb: tuple[str, str]
    parameters: int
    phases: list[Phase]
    flops: list[Flops]
    is_locked: tuple[bool, bool]
    memory: Memory
    num_checks: int

    def training_flops(self, position: int) -> float:
        """FLOPs of the sample at a position of the run in training: forward, and a backward of twice that."""
        return self._training(self.flops[self.phases.index(phase_at(self.phases, position))])

    @property
    def total_flops(self) -> float:
        """FLOPs of training in the whole run."""
        sizes = phase_lengths(self.phases, self.lengths.total)
        return sum(self._training(flops) * size for flops, size in zip(self.flops, sizes, strict=True))

    def _training(self, flops: Flops) -> float:
        return sum(count * (1 if locked else 3) for count, locked in zip(flops, self.is_locked, strict=True))


def preflight(config: Config) -> Preflight:
    """Tries everything.

    Raises:
        UserError: all that was found wrong; a DataError when only data was.
    """
    trials = _Trials()
    datamodule = trials.run(lambda: build_datamodule(config))
    tasks = trials.run(lambda: build_tasks(config.eval.tasks or [], config.eval.folders))
    model = trials.run(lambda: build_on_meta(config))
    trials.run(lambda: build_loss(config.loss))
    teacher = trials.run(lambda: find_teacher(config)) if config.loss.teacher else None
    tracking = trials.run(lambda: wandb_mode(config.tracker))
    if config.model.text.tokenizer.kind != "trained":
        trials.run(lambda: build_tokenizer(config.model.text, None, None))
    lengths = trials.run(lambda: lengths_of(config, datamodule.num_samples)) if datamodule else None
    phases = list(datamodule.phases) if datamodule else []
    flops = trials.run(lambda: [count_flops(config.model, config.loss, phase) for phase in phases]) if model else None
    trials.finish()
    if datamodule is None or model is None or flops is None or lengths is None or tracking is None or tasks is None:
        raise AssertionError("every trial that told no problem has a result")
    return Preflight(
        datamodule=datamodule,
        lengths=lengths,
        tasks=tasks,
        wandb=tracking,
        parameters=num_parameters(model),
        phases=phases,
        flops=flops,
        is_locked=(config.model.vision.locked, config.model.text.locked),
        memory=estimate_memory(config, model, phases, build_on_meta(teacher.config) if teacher else None),
        num_checks=trials.count,
    )


class _Trials:
    """Runs builders and gathers what a user can mend."""

    def __init__(self) -> None:
        self.count = 0
        self.errors: list[UserError] = []

    def run(self, build: Callable[[], _Built]) -> _Built | None:
        self.count += 1
        try:
            return build()
        except UserError as error:
            self.errors.append(error)
            return None

    def finish(self) -> None:
        if self.errors:
            kind = DataError if all(isinstance(error, DataError) for error in self.errors) else UserError
            raise kind(*(problem for error in self.errors for problem in error.problems)) from self.errors[0]


def build_datamodule(config: Config) -> ContrastiveDataModule:
    """The data of a run, as long as the run is; its tokenizer is set later.

    Raises:
        UserError: the data cannot be trained on, or the run's length cannot be told.
    """

    def build(total_samples: int) -> ContrastiveDataModule:
        return ContrastiveDataModule(
            config.data,
            image_size=config.model.vision.image_size,
            tokenizer=None,
            seed=config.compute.seed,
            global_batch=config.compute.global_batch,
            total_samples=total_samples,
            workers=config.cluster.workers,
            overfit_samples=config.debug.overfit_samples,
        )

    if duration.parse(config.compute.duration).unit != "epochs":
        datamodule = build(lengths_of(config, None).total)
    else:  # how long the run is in samples follows from how many pairs the index finds
        num_samples = build(config.compute.global_batch).num_samples
        datamodule = build(lengths_of(config, num_samples).total)
    datamodule.phases = phases_of(config, total_samples=datamodule.total_samples, epoch_samples=datamodule.num_samples)
    return datamodule


def lengths_of(config: Config, epoch_samples: int | None) -> Lengths:
    """The durations of a config in samples. Raises UserError when one cannot be told."""
    batch = config.compute.global_batch

    def samples(text: str, total: int | None) -> int:
        return duration.to_samples(text, global_batch=batch, epoch_samples=epoch_samples, total_samples=total)

    total = samples(config.compute.duration, None)
    if not total:
        raise UserError(f"compute.duration={config.compute.duration} is no step of {batch} samples; make it longer")
    goes_back = config.compute.on_divergence == "rollback"
    return Lengths(
        total=total,
        checkpoint_every=samples(config.cluster.checkpoint_every, total),
        keep_every=samples(config.cluster.keep_every, total) if config.cluster.keep_every else 0,
        eval_every=samples(config.eval.every, total),
        log_every=max(batch, samples(config.tracker.log_every, total)),
        rollback_margin=samples(config.compute.rollback_margin, total) if goes_back else 0,
    )


def build_on_meta(config: Config) -> CLIP:
    """The model without memory. Raises UserError for names and shapes that do not fit."""
    with torch.device("meta"):
        return build_clip(config.model, config.loss)


def num_parameters(model: nn.Module) -> int:
    """All parameters, trained or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def prepare_tokenizer(config: Config, folder: Path, datamodule: ContrastiveDataModule) -> Tokenizer:
    """The run's tokenizer; one of its own is trained on its captions at the first start, and kept in `folder`.

    A student takes the one that its teacher has trained.
    """
    text = config.model.text
    if text.tokenizer.kind != "trained":
        return build_tokenizer(text, None, None)
    folder.mkdir(parents=True, exist_ok=True)
    if config.loss.teacher:
        _take_tokenizer(Path(config.loss.teacher) / "tokenizer" / FILE_NAME, folder / FILE_NAME)
    known = (folder / FILE_NAME).exists()
    return build_tokenizer(text, folder, None if known else datamodule.captions(TOKENIZER_CAPTIONS))


def _take_tokenizer(teachers: Path, own: Path) -> None:
    """A student reads the tokens of its teacher. Raises UserError where it began with others."""
    content = teachers.read_text(encoding="utf-8")
    if not own.exists():
        write_atomically(own, content)
    elif own.read_text(encoding="utf-8") != content:
        raise UserError(f"{own} is not the tokenizer of loss.teacher ({teachers}); start over with fresh=true")


def estimate_memory(config: Config, model: CLIP, phases: Sequence[Phase], teacher: CLIP | None = None) -> Memory:
    """Bytes of one rank's step: float32 weights, gradients and AdamW's two moments, and what autograd keeps.

    Of what is sharded the rank's part is counted, without the units that are whole for a moment. What autograd keeps is
    that of the largest phase, counted on the meta device in float32 and halved under 16-bit autocast, which keeps most
    of it in 16 bits.
    """
    weights = 4 * num_parameters(model)
    trained = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    ranks, shards = config.cluster.nodes * config.cluster.devices, fsdp.shard_size(config.cluster)
    share = config.compute.global_batch // ranks
    batch = min(config.cluster.micro_batch or share, share)
    width = 1 if config.compute.precision == "fp32" else 2
    return Memory(
        weights=weights * (2 if config.compute.ema_decay else 1) // shards,
        gradients=trained // shards,
        optimizer=2 * trained // shards,
        activations=batch * max(_saved_bytes(config, phase) for phase in phases) // width,
        teacher=4 * num_parameters(teacher) if teacher else 0,
    )


def _saved_bytes(config: Config, phase: Phase) -> int:
    """Float32 bytes that autograd keeps for one pair of a phase, weights left out."""
    size, length = phase.image_size, phase.context_length
    with torch.device("meta"):
        model = build_clip(config.model, config.loss, (phase,))
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    pairs = 2  # batch normalisation refuses one
    images = torch.zeros(pairs, 3, size, size, device="meta")
    tokens = torch.zeros(pairs, length, dtype=torch.int64, device="meta")
    lengths = torch.full((pairs,), length, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = model.train()(images, tokens, lengths)
    del features
    return sum(storage.nbytes() for storage in kept.values()) // pairs
