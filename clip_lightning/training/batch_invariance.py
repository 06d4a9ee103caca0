"""Checks before the first step that a pair's features do not depend on the other pairs of its batch.

Ranks, micro-batches and length groups split a batch. That changes nothing only if padding affects no feature, and if
what is dropped at random is drawn per sample (`sample_randomness`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clip_lightning.compat import TorchDispatchMode, argument_names, operator_name
from clip_lightning.config.phases import Phase
from clip_lightning.config.schema import Config, TextConfig
from clip_lightning.errors import AgreedError, UserError
from clip_lightning.model.clip import build_clip
from clip_lightning.training import sample_randomness
from clip_lightning.training.step_context import CurrentStep, StepContext

# Of a feature's norm: far above the rounding of float32, far below what attention to padding does.
_TOLERANCE = 1e-4


@torch.no_grad()
def check_padding(tower: Any, config: TextConfig) -> None:
    """Encodes a short text with and without padding behind it, without random draws.

    Raises: AgreedError where its feature changes: texts are padded to the longest text of their batch.
    """
    longest = min(8, config.context_length)
    short = longest // 2
    if config.pad_to_context or not short:
        return
    tokens = torch.arange(1, longest + 1)[None] % config.tokenizer.vocab_size
    tokens[:, short:] = 0
    lengths, was_training = torch.tensor([short]), tower.training
    tower.eval()
    cut, padded = (tower(tokens[:, :length], lengths) for length in (short, longest))
    tower.train(was_training)
    if (cut - padded).norm() > _TOLERANCE * cut.norm():
        fixes = ["model.text.pad_to_context=true"]
        if not (config.mask_padding or tower.is_own):
            fixes.insert(0, "model.text.mask_padding=true")
        raise AgreedError(
            f"model.text={config.name}: the padding after a caption changes its features, so they would depend on "
            f"the other captions of the batch; write {' or '.join(fixes)}"
        )


def check_draws(config: Config, phases: Sequence[Phase]) -> None:
    """Runs two pairs through the towers in training mode, on the meta device; a user's own towers are not checked.

    Raises: UserError where a random draw does not depend on the sample alone.
    """
    for phase in phases:
        _check_draws(config, phase)


def _check_draws(config: Config, phase: Phase) -> None:
    with torch.device("meta"):
        model = build_clip(config.model, config.loss, (phase,)).train()
        step = CurrentStep()
        sample_randomness.apply(model, step)
        step.context = StepContext(keys=torch.zeros(2, dtype=torch.int64))
        images = torch.zeros(2, 3, phase.image_size, phase.image_size)
        tokens = torch.zeros(2, phase.context_length, dtype=torch.int64)
        lengths = torch.full((2,), phase.context_length)
    # The encoder reads the values of a mask, and tensors on the meta device have none.
    model.text.mask_padding = False  # type: ignore[assignment]
    calls: dict[str, tuple[Any, Callable[[], Tensor]]] = {
        "vision": (config.model.vision, lambda: model.encode_image(images)),
        "text": (config.model.text, lambda: model.encode_text(tokens, lengths)),
    }
    for name, (tower, call) in calls.items():
        if tower._target_ is not None:
            continue
        with _Draws() as draws:
            call()
        if draws.found:
            raise UserError(
                f"model.{name}={tower.name} drops at random inside an operation ({draws.found}), where what is dropped "
                f"would depend on ranks and micro-batches; leave out the dropout of attention in model.{name}"
            )


class _Draws(TorchDispatchMode):
    """Finds the first operation that reads torch's random state while the mode is active; "" if there is none."""

    found = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = dict(zip(argument_names(func), args, strict=False)) | (kwargs or {})
        # Fused attention draws only where its dropout is above 0.
        if torch.Tag.nondeterministic_seeded in func.tags and values.get("dropout_p", 1.0):
            self.found = self.found or operator_name(func)
        return func(*args, **(kwargs or {}))
