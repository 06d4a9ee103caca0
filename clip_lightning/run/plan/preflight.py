"""Everything that can fail before the first step is tried here, and all problems are reported at once.

The data is indexed, the model is built on the meta device (names, shapes, pretrained files, parameters, FLOPs,
activations: no memory), the tokenizer and the evaluation tasks are looked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from clip_lightning.config.checks import paths as data_places
from clip_lightning.config.lengths import Lengths, resolve_lengths
from clip_lightning.config.phases import Phase, phase_lengths, phases_of
from clip_lightning.config.schema import Config
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.errors import DataError, UserError
from clip_lightning.loss import build_loss
from clip_lightning.model.clip import CLIP, build_clip
from clip_lightning.model.flops import Flops, TextFlops, count_flops, count_text
from clip_lightning.run.callbacks import check_callbacks
from clip_lightning.run.evaluators import FoundTasks, find_tasks
from clip_lightning.run.hardware import device_of, uses_gpu
from clip_lightning.run.loggers import check_loggers
from clip_lightning.run.plan.memory import Memory, estimate_memory, memory_problems, num_parameters
from clip_lightning.tokenizer import build_tokenizer
from clip_lightning.training.batch_invariance import check_draws
from clip_lightning.training.teacher import find_teacher

_Built = TypeVar("_Built")


@dataclass(frozen=True)
class Plan:
    """What a run computes and holds, counted before anything is made.

    Attributes:
        epoch_samples: pairs that the index found; in a dry run without the data, those that were published.
        has_data: whether the data is there and was looked at.
        flops: forward FLOPs of one sample by tower, in each phase of the run; its text fills the context.
        text_flops: those of a text by its own length; None where all cost the context's.
        is_locked: whether the image tower, and whether the text tower, is never gone back through.
        num_checks: how many things were tried.
        data_notes: what the data lacks, one sentence each.
    """

    epoch_samples: int
    has_data: bool
    lengths: Lengths
    parameters: int
    phases: list[Phase]
    flops: list[Flops]
    text_flops: TextFlops | None
    is_locked: tuple[bool, bool]
    memory: Memory
    num_checks: int
    data_notes: Sequence[str]

    def training_flops(self, texts: Sequence[Sequence[float]]) -> float:
        """FLOPs of training on samples with such texts: forward, and a backward of twice that.

        Args:
            texts: [phases, 3], of each phase how many, their tokens without padding, and the squares of their tokens.
        """
        total = 0.0
        for flops, (num, tokens, squares) in zip(self.flops, texts, strict=True):
            text = self.text_flops.total(num, tokens, squares) if self.text_flops else num * flops.text
            total += self.training_of(Flops(num * flops.image, text))
        return total

    @property
    def total_flops(self) -> float:
        """FLOPs of training in the whole run, were every text as long as the context: no run needs more."""
        sizes = phase_lengths(self.phases, self.lengths.total)
        return sum(self.training_of(flops) * size for flops, size in zip(self.flops, sizes, strict=True))

    def training_of(self, flops: Flops) -> float:
        """FLOPs of training on a sample whose forward FLOPs are these: a locked tower is not gone back through."""
        return sum(count * (1 if locked else 3) for count, locked in zip(flops, self.is_locked, strict=True))


@dataclass(frozen=True)
class Preflight(Plan):
    """What has been built and counted before training starts."""

    datamodule: ContrastiveDataModule
    tasks: FoundTasks


def preflight(config: Config) -> Preflight:
    """Tries everything.

    Raises:
        UserError: all that was found wrong, a DataError when only data was; or a step does not fit into memory.
    """
    found = plan(config)
    if not isinstance(found, Preflight):
        raise AssertionError("only a dry run goes without data")
    problems = memory_problems(config, found.memory, device_of(config.cluster))
    if config.compute.precision == "fp16" and not uses_gpu(config.cluster.accelerator):
        problems.append("compute.precision=fp16 needs a GPU, and this node has none; write compute.precision=bf16")
    if problems:
        raise UserError(*problems)
    return found


def plan(config: Config) -> Plan:
    """The same, of a dry run without its data too; raises the same errors."""
    attempts = _Trials()
    has_data = not data_places.counts_as_published(config)
    datamodule = attempts.run(lambda: build_datamodule(config)) if has_data else None
    if datamodule:
        attempts.run(datamodule.check_validation)
    tasks = attempts.run(lambda: find_tasks(config.eval))
    model = attempts.run(lambda: build_on_meta(config))
    attempts.run(lambda: build_loss(config.loss))
    teacher = attempts.run(lambda: find_teacher(config)) if config.loss.teacher else None
    attempts.run(lambda: check_loggers(config))
    attempts.run(lambda: check_callbacks(config))
    if config.model.text.tokenizer.kind != "trained":
        attempts.run(lambda: build_tokenizer(config.model.text, None, None))
    pairs = datamodule.num_samples if datamodule else None if has_data else config.data.num_samples
    lengths, phases = (attempts.run(lambda: _lengths_and_phases(config, pairs)) if pairs else None) or (None, [])
    flops = attempts.run(lambda: [count_flops(config.model, config.loss, phase) for phase in phases]) if model else None
    if flops:  # a size that a tower cannot take is reported already
        attempts.run(lambda: check_draws(config, phases))
    attempts.finish()
    if model is None or flops is None or pairs is None or lengths is None or tasks is None:
        raise AssertionError("every attempt without a problem has a result")
    counted = Plan(
        epoch_samples=pairs,
        has_data=has_data,
        lengths=lengths,
        parameters=num_parameters(model),
        phases=phases,
        flops=flops,
        text_flops=count_text(config.model),
        is_locked=(config.model.vision.locked, config.model.text.locked),
        memory=estimate_memory(config, model, phases, build_on_meta(teacher.config) if teacher else None),
        num_checks=attempts.count,
        data_notes=datamodule.notes if datamodule else (),
    )
    return Preflight(**vars(counted), datamodule=datamodule, tasks=tasks) if datamodule else counted


def _lengths_and_phases(config: Config, epoch_samples: int) -> tuple[Lengths, list[Phase]]:
    lengths = resolve_lengths(config, epoch_samples)
    return lengths, phases_of(config, total_samples=lengths.total, epoch_samples=epoch_samples)


class _Trials:
    """Runs builders and collects the problems that a user can fix."""

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
    """The data of a run; its tokenizer is set later. Raises UserError where it cannot be trained on."""
    return ContrastiveDataModule(config)


def build_on_meta(config: Config) -> CLIP:
    """The model without memory. Raises UserError for names and shapes that do not fit."""
    with torch.device("meta"):
        return build_clip(config.model, config.loss)
