"""The objectives: losses of one global batch, exact on any number of ranks, and the registry that tests iterate.

A new loss is one file here, one line in `LOSSES`, and one YAML in conf/loss; a user's own is named by `_target_` and
needs no line here. Its class takes its own options, and `chunk` if it works in tiles; `forward(image, text,
logit_scale, logit_bias)` gets this rank's features [b, D] and returns a `LossOutput`. A class with `needs_teacher =
True` also gets `teacher_image`, `teacher_text` [b, T] and `teacher_scale` [1], by these names (see `distill.py`).
"""

import inspect

from torch import nn

from clip_lightning.config.schema import LossConfig
from clip_lightning.errors import UserError
from clip_lightning.loss.distill import DistillLoss
from clip_lightning.loss.sigmoid import SigmoidLoss
from clip_lightning.loss.softmax import LossOutput, SoftmaxLoss
from clip_lightning.targets import resolve_target

__all__ = [
    "LOSSES",
    "DistillLoss",
    "LossOutput",
    "SigmoidLoss",
    "SoftmaxLoss",
    "build_loss",
    "needs_pair_keys",
    "needs_teacher",
]

LOSSES: dict[str, type[nn.Module]] = {"softmax": SoftmaxLoss, "sigmoid": SigmoidLoss, "distill": DistillLoss}


def build_loss(config: LossConfig) -> nn.Module:
    """The loss that `config` names, from the registry or by its own `_target_`.

    Raises: UserError for an unknown name, a target that cannot be imported, options that the loss does not take, a
        teacher that is missing, and a teacher that would have no effect.
    """
    if config._target_ is not None:
        loss_class = resolve_target(config._target_, "loss._target_")
    elif config.name in LOSSES:
        loss_class = LOSSES[config.name]
    else:
        known = ", ".join(LOSSES)
        raise UserError(
            f"loss.name={config.name} is not a registered loss: choose one of {known}, or set loss._target_"
        )
    if needs_teacher(loss_class) and config.teacher is None:
        raise UserError(f"loss={config.name} learns from a teacher: write loss.teacher=DIR, a finished run's directory")
    if config.teacher is not None and not needs_teacher(loss_class):
        raise UserError(f"loss.teacher={config.teacher} has no effect: loss={config.name} has no teacher; leave it out")
    options = dict(config.options)
    if "chunk" in options:
        raise UserError(f"loss.options={options}: write the rows of a tile as loss.chunk, without options")
    signature = inspect.signature(loss_class)
    if "chunk" in signature.parameters:
        options["chunk"] = config.chunk
    if "duplicates" in signature.parameters:
        options.setdefault("duplicates", config.duplicates)
    elif config.duplicates != "none":
        raise UserError(
            f"loss.duplicates={config.duplicates} has no effect: loss={config.name} has one positive for each image; "
            "write loss.duplicates=none"
        )
    try:
        signature.bind(**options)
        loss = loss_class(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"loss.options={dict(config.options)} do not fit the loss {config.name}: {error}") from error
    if any(True for _ in loss.parameters()):
        raise UserError(
            f"loss={config.name} has parameters, which nothing would train: scale and bias are the model's "
            "(loss.logit_scale_init, loss.logit_bias_init); make the others buffers"
        )
    return loss


def needs_teacher(loss: nn.Module | type[nn.Module]) -> bool:
    """Whether `forward` takes the features of a teacher."""
    return bool(getattr(loss, "needs_teacher", False))


def needs_pair_keys(loss: nn.Module) -> bool:
    """Whether `forward` takes `pair_keys`, int64 [b, 2]: a hash of each caption and the id of each image."""
    return bool(getattr(loss, "needs_pair_keys", False))
