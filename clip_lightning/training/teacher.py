"""A frozen teacher: the model of a finished run; the loss compares its features of the same pairs to the student's.

It is not a module of the student: no wrapper, optimizer or checkpoint contains it, and every rank holds all of it. The
science names it as `loss.teacher_science`.
"""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from clip_lightning.config import compose
from clip_lightning.config.schema import Config, TextConfig
from clip_lightning.errors import UserError
from clip_lightning.reliability.checkpoint import Checkpoint
from clip_lightning.training.saved_model import config_of_saved, find_checkpoint, load_model, targets


class FoundTeacher(NamedTuple):
    """A run that can teach: its config, and the checkpoint whose weights are taken."""

    config: Config
    checkpoint: Checkpoint


def find_teacher(student: Config) -> FoundTeacher:
    """The run in `student.loss.teacher`, after everything was checked but the weights' shapes.

    Raises: UserError for a run that is not finished, has no checkpoint, reads other tokens or names code to call.
    """
    path = Path(str(student.loss.teacher))
    teacher = compose.read(path / "config.yaml")
    status = path / "status.json"
    state = json.loads(status.read_text(encoding="utf-8")).get("status") if status.is_file() else "new"
    problems = [] if state == "finished" else [f"loss.teacher={path} is {state}: a teacher is a finished run"]
    problems += [
        f"loss.teacher={path}: its {key}={target} would be imported and called, and the student's config does not name "
        "it; choose a teacher without it"
        for key, target in targets(teacher).items()
        if target not in targets(student).values() and not key.startswith("loss.")
    ]
    problems += [
        f"loss.teacher={path}: {problem}" for problem in _text_problems(student.model.text, teacher.model.text)
    ]
    shorter = [phase.context_length for phase in student.compute.phases if phase.context_length]
    if teacher.model.text.pad_to_context and shorter:
        problems.append(
            f"loss.teacher={path}: it reads texts padded to its context, and compute.phases cut them to {shorter[0]} "
            "tokens; leave context_length out of the phases"
        )
    if problems:
        raise UserError(*problems)
    return FoundTeacher(config_of_saved(teacher, path), find_checkpoint(path, "last"))


class Teacher:
    """Computes features; is never trained."""

    def __init__(self, found: FoundTeacher) -> None:
        """Raises: UserError, CheckpointError where the model cannot be built or the weights are another model's."""
        model = load_model(found.config, found.checkpoint).requires_grad_(False)
        self.model = model.to(memory_format=torch.channels_last)
        self.image_size = found.config.model.vision.image_size

    @torch.no_grad()
    def features(
        self, images: Tensor, tokens: Tensor, lengths: Tensor, *, batch: int, autocast: AbstractContextManager[None]
    ) -> dict[str, Tensor]:
        """The loss's further arguments: `teacher_image`, `teacher_text` float32 [b, T], and `teacher_scale` [1].

        Args:
            images: uint8 [b, 3, S, S] as the student sees them; brought to the teacher's own size and statistics.
            tokens, lengths: int64 [b, L], [b].
            batch: pairs in one forward pass. autocast: the precision of the towers.
        """
        if self.model.current_logit_scale().device != images.device:
            self.model.to(images.device)
        parts = []
        with autocast:
            for piece in zip(images.split(batch), tokens.split(batch), lengths.split(batch), strict=True):
                parts.append(self.model(resized(piece[0], self.image_size), *piece[1:]))
        return {
            "teacher_image": torch.cat([part.image for part in parts]),
            "teacher_text": torch.cat([part.text for part in parts]),
            "teacher_scale": parts[0].logit_scale,
        }


def resized(images: Tensor, size: int) -> Tensor:
    """Uint8 images [b, 3, S, S] at another size, by the bicubic filter of the evaluation transform."""
    if images.shape[-1] == size:
        return images
    pixels = functional.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _text_problems(student: TextConfig, teacher: TextConfig) -> list[str]:
    """Why the teacher cannot read the student's tokens."""
    if (other := _tokens(teacher)) != (own := _tokens(student)):
        return [f"its tokenizer ({other}) is not the student's ({own}), and both read the same tokens"]
    if student.context_length > teacher.context_length:
        return [
            f"it reads {teacher.context_length} tokens, and model.text.context_length={student.context_length}; "
            f"write {teacher.context_length} or less"
        ]
    if teacher.pad_to_context and (not student.pad_to_context or student.context_length < teacher.context_length):
        return [
            f"it reads texts padded to {teacher.context_length} tokens; write model.text.pad_to_context=true and "
            f"model.text.context_length={teacher.context_length}"
        ]
    return []


def _tokens(text: TextConfig) -> str:
    tokenizer = text.tokenizer
    return ", ".join(
        str(part) for part in (tokenizer.kind, tokenizer.path, tokenizer.vocab_size, tokenizer.clean) if part
    )
