"""An optimizer's state in a checkpoint: laid out for its parameters, and matched by their names where these changed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from clip_lightning.reliability.shards import laid_out

# AdamW's moments of a parameter; an optimizer has no state before its first step.
_MOMENTS = 2


def parameter_names(optimizer: torch.optim.Optimizer, module: nn.Module) -> list[str]:
    """Names of an optimizer's parameters in the order in which its state numbers them."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def matched_by_name(
    saved: Mapping[str, Any], before: list[str], now: list[str], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """A saved state for an optimizer of other parameters: each keeps its own state, a new one starts without.

    Args: before, now: names of the parameters in the saved state, and in `optimizer`.
    """
    numbers = {name: number for number, name in enumerate(before)}
    kept = {new: numbers[name] for new, name in enumerate(now) if numbers.get(name) in saved["state"]}
    state = {new: saved["state"][old] for new, old in kept.items()}
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def optimizer_laid_out(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's saved state as its parameters lie."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for k, moments in saved["state"].items():
        of_parameter = {name for name, value in moments.items() if value.shape == parameters[k].shape}
        state[k] = {
            # A copy: what stays a view would hold the checkpoint's file open, which NFS then does not let go.
            name: laid_out(value, parameters[k]) if name in of_parameter else value.clone()
            for name, value in moments.items()
        }
    return {**saved, "state": state}


def bytes_to_come(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the moments that an optimizer makes in its first step, of all shards; 0 where it has a state."""
    if optimizer.state:
        return 0
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return sum(_MOMENTS * parameter.numel() * parameter.element_size() for parameter in parameters)
