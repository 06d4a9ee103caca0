"""The optimizer of a run, which parameters decay, and how a step is skipped."""

import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from clip_lightning import compat
from clip_lightning.config.schema import OptimizerConfig
from clip_lightning.errors import UserError
from clip_lightning.parallel.fsdp import full_tensor
from clip_lightning.targets import resolve_target

# Tables of positions and single learned tokens are biases of what they are added to, whatever their shape.
_POSITIONS = re.compile(
    r"pos_embed|position\w*_embedding|relative_(attention|position)|rel_pos|(cls|class|reg|dist)_(token|embed)"
)
_VOCABULARY = re.compile(r"(token|word)_embeddings?\.weight|embed_tokens|shared\.weight|wte\.weight")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter decays: "all weights that are not gains or biases" (paper section 2.5).

    Leaves out everything with fewer than two axes (gains, biases, logit scale and bias) and position embeddings.
    """
    return parameter.ndim >= 2 and not _POSITIONS.search(name)


def build_optimizer(model: nn.Module, config: OptimizerConfig, learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer over the parameters that are trained; its learning rate is set before every step.

    The parameters form one group that decays and one that does not; for a class with `splits_matrices`, the matrices
    that are multiplied with activations form a group of their own before these. AdamW is fused: one kernel a group.

    Raises:
        UserError: `optimizer._target_` cannot be imported, or does not take these parameters and options.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decaying = [(name, parameter) for name, parameter in trained if decays(name, parameter)]
    still = [parameter for name, parameter in trained if not decays(name, parameter)]
    if config._target_ is None:
        assert config.beta2 is not None, "filled from the recipes when the config is resolved"
        assert config.eps is not None
        assert config.weight_decay is not None
        groups = [
            {"params": [parameter for _, parameter in decaying], "weight_decay": config.weight_decay},
            {"params": still, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            groups, lr=learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True, foreach=False
        )
    made = resolve_target(config._target_, "optimizer._target_")
    decay = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    sets = [(decaying, decay), ([("", parameter) for parameter in still], {"weight_decay": 0.0})]
    if getattr(made, "splits_matrices", False):
        matrices = [(n, p) for n, p in decaying if p.ndim == 2 and not _VOCABULARY.search(n)]
        names = {name for name, _ in matrices}
        sets[:1] = [(matrices, decay), ([(n, p) for n, p in decaying if n not in names], decay)]
    groups = [{"params": [parameter for _, parameter in named], **settings} for named, settings in sets]
    try:
        optimizer = made([group for group in groups if group["params"]], lr=learning_rate, **config.options)
    except (TypeError, ValueError, RuntimeError) as error:
        hint = "; write optimizer=muon, which trains the others by AdamW" if "2D parameters" in str(error) else ""
        raise UserError(
            f"optimizer._target_={config._target_} does not take the model's parameters with "
            f"optimizer.options={dict(config.options)}: {str(error).splitlines()[0]}{hint}"
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer._target_={config._target_} gives no torch.optim.Optimizer; name a subclass of it")
    return optimizer


def step_unless(optimizer: Any, is_skipped: Tensor) -> None:
    """Takes a step of Lightning's optimizer unless `is_skipped`, [] on the device, is 1: then all bits stay.

    An optimizer that reads `found_inf`, as fused ones do, decides on the device. For any other the host reads the flag,
    which waits for the device once per step: a copy of weights and state to restore would cost their memory again.
    """
    if compat.reads_found_inf(optimizer.optimizer):
        optimizer.optimizer.found_inf = is_skipped
        optimizer.step()
    elif not full_tensor(is_skipped).item():
        optimizer.step()


def state_size(config: OptimizerConfig) -> float:
    """Numbers that the optimizer keeps for each number of a parameter, measured on a small matrix; AdamW: 2.

    Raises: UserError as `build_optimizer` does.
    """
    layer = nn.Linear(96, 64, bias=False)
    optimizer = build_optimizer(layer, config, 1e-3)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    kept = sum(
        value.numel() for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    )
    return round(kept / layer.weight.numel(), 1)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Keller Jordan 2024) for matrices that are multiplied with activations, AdamW for all other parameters.

    Muon's update has a fixed scale, and `match_rms_adamw` gives it that of AdamW's (Moonlight, arXiv 2502.16982), so
    that one learning rate serves both. The first group is Muon's where it holds matrices only.
    """

    splits_matrices = True

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.1,
    ) -> None:
        is_muon = all(parameter.ndim == 2 for parameter in groups[0]["params"])
        muon = {"momentum": momentum, "adjust_lr_fn": "match_rms_adamw"}
        adamw = {"betas": tuple(betas), "eps": eps}
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        parts: list[torch.optim.Optimizer] = []
        for k, group in enumerate(groups):
            made: Any = torch.optim.Muon if is_muon and not k else torch.optim.AdamW
            parts.append(made([group], **shared, **(muon if is_muon and not k else adamw)))
        self._parts = parts
        super().__init__([part.param_groups[0] for part in parts], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of each; they share this optimizer's groups and state."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], defaultdict(dict)
            part.state.update({p: self.state[p] for p in group["params"] if p in self.state})
            part.step()
            self.state.update(part.state)
        return result
