"""The objectives: losses of one global batch, exact on any number of ranks, and the registry that tests iterate.

A new loss is one file here with a class that takes `chunk` and its own options, one line in `LOSSES`, and one YAML in
conf/loss; a user's own loss is named by `_target_` and needs no line here. `forward(image, text, logit_scale,
logit_bias)` gets this rank's features [b, D] and returns a `LossOutput`.
"""

import inspect
from importlib import import_module

from torch import nn

from clip_lightning.config.schema import LossConfig
from clip_lightning.errors import UserError
from clip_lightning.loss.sigmoid import SigmoidLoss
from clip_lightning.loss.softmax import LossOutput, SoftmaxLoss

__all__ = ["LOSSES", "LossOutput", "SigmoidLoss", "SoftmaxLoss", "build_loss"]

LOSSES: dict[str, type[nn.Module]] = {"softmax": SoftmaxLoss, "sigmoid": SigmoidLoss}


def build_loss(config: LossConfig) -> nn.Module:
    """The loss that `config` names, from the registry or by its own `_target_`.

    Raises: UserError for an unknown name, a target that cannot be imported, options that the loss does not take, and a
        bias that would have no effect.
    """
    if config._target_ is not None:
        loss_class = _load(config._target_)
    elif config.name in LOSSES:
        loss_class = LOSSES[config.name]
    else:
        known = ", ".join(LOSSES)
        raise UserError(f"loss.name={config.name} is no registered loss: choose one of {known}, or set loss._target_")
    if loss_class is SoftmaxLoss and config.logit_bias_init is not None:
        raise UserError(
            f"loss.logit_bias_init={config.logit_bias_init} has no effect with loss=softmax, whose value does not "
            "change with a bias of all logits: set it to null"
        )
    try:
        inspect.signature(loss_class).bind(chunk=config.chunk, **config.options)
    except TypeError as error:
        raise UserError(f"loss.options={dict(config.options)} do not fit the loss {config.name}: {error}") from error
    return loss_class(chunk=config.chunk, **config.options)


def _load(path: str) -> type[nn.Module]:
    module, _, name = path.rpartition(".")
    try:
        loss_class: type[nn.Module] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"loss._target_={path} cannot be imported: {error}; write package.module.Class") from error
    return loss_class
