"""What would make a pair's features depend on the pairs beside it, told before the first step.

A batch is cut by ranks, micro-batches and length groups. That changes nothing only where padding reaches no feature,
and where what is dropped at random is drawn by the sample (`sample_randomness`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clip_lightning.config.phases import Phase
from clip_lightning.config.schema import Config, TextConfig
from clip_lightning.errors import AgreedError, UserError
from clip_lightning.model.clip import build_clip
from clip_lightning.training import sample_randomness

# Of a feature's norm: far above the rounding of float32, far below what attention to padding does.
_TOLERANCE = 1e-4


@torch.no_grad()
def check_padding(tower: Any, config: TextConfig) -> None:
    """Encodes a short text with and without padding behind it, without random draws.

    Raises: AgreedError where its feature changes, though texts are cut at the longest of those beside them.
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
        mends = ["model.text.pad_to_context=true"]
        if not (config.mask_padding or tower.is_own):
            mends.insert(0, "model.text.mask_padding=true")
        raise AgreedError(
            f"model.text={config.name}: the padding behind a caption changes its features, which would depend on the "
            f"captions beside it; write {' or '.join(mends)}"
        )


def check_draws(config: Config, phases: Sequence[Phase]) -> None:
    """Passes two pairs through the towers in training, on the meta device; a user's own towers are their own matter.

    Raises: UserError where something is drawn at random that no sample decides.
    """
    for phase in phases:
        _check_draws(config, phase)


def _check_draws(config: Config, phase: Phase) -> None:
    with torch.device("meta"):
        model = build_clip(config.model, config.loss, (phase,)).train()
        source = sample_randomness.apply(model)
        source.keys = torch.zeros(2, dtype=torch.int64)
        images = torch.zeros(2, 3, phase.image_size, phase.image_size)
        tokens = torch.zeros(2, phase.context_length, dtype=torch.int64)
        lengths = torch.full((2,), phase.context_length)
    # Whether a mask hides anything is asked of its values, which are not there.
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
    """Finds an operation that reads torch's random state while it is entered; "" where there is none."""

    found = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        values = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (kwargs or {})
        # Fused attention may draw, and does where it is told to drop.
        if torch.Tag.nondeterministic_seeded in func.tags and values.get("dropout_p", 1.0):
            self.found = self.found or func._schema.name
        return func(*args, **(kwargs or {}))
