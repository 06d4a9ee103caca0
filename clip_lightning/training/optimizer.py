"""AdamW, and which parameters decay."""

import re

import torch
from torch import nn

from clip_lightning.config.schema import OptimizerConfig

# Tables of positions and single learned tokens are biases of what they are added to, whatever their shape.
_POSITIONS = re.compile(
    r"pos_embed|position\w*_embedding|relative_(attention|position)|rel_pos|(cls|class|reg|dist)_(token|embed)"
)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter decays: "all weights that are not gains or biases" (paper section 2.5).

    Leaves out everything with fewer than two axes (gains, biases, logit scale and bias) and position embeddings.
    """
    return parameter.ndim >= 2 and not _POSITIONS.search(name)


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, learning_rate: float, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained, in one group that decays and one that does not.

    Fused: one kernel a group, and it leaves everything as it was where `found_inf` is 1, without asking the host.
    """
    assert config.beta2 is not None, "filled from the recipes when the config is resolved"
    assert config.eps is not None
    assert config.weight_decay is not None
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for n, p in trained if decays(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in trained if not decays(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True, foreach=False
    )
