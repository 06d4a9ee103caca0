"""Optimizer state whose parameters changed: each keeps its own moments, a new one starts without."""

import torch
from torch import nn

from clip_lightning.reliability.optimizer_state import (
    bytes_to_come,
    matched_by_name,
    optimizer_laid_out,
    parameter_names,
)
from clip_lightning.reliability.shards import tree_bytes


class Model(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.full((3, 4), float(len(name)))))


def stepped(model: Model) -> torch.optim.Optimizer:
    """An optimizer with two groups after one step with gradients that differ between parameters."""
    parameters = list(model.parameters())
    groups = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:]}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.1)
    for parameter in parameters:
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    return optimizer


def test_state_follows_names_where_parameters_come_and_go() -> None:
    before, now = Model("a", "bb", "ccc"), Model("bb", "ccc", "dddd")
    saved = stepped(before)
    fresh = torch.optim.AdamW(now.parameters(), lr=0.5)
    names = parameter_names(saved, before), parameter_names(fresh, now)
    assert names == (["a", "bb", "ccc"], ["bb", "ccc", "dddd"])
    fresh.load_state_dict(optimizer_laid_out(matched_by_name(saved.state_dict(), *names, fresh), fresh))
    assert fresh.param_groups[0]["lr"] == 0.5
    for name in ("bb", "ccc"):
        kept, own = saved.state[getattr(before, name)], fresh.state[getattr(now, name)]
        assert torch.equal(kept["exp_avg"], own["exp_avg"])
        assert own["step"] == 1
    assert now.dddd not in fresh.state
    for parameter in now.parameters():
        parameter.grad = torch.ones_like(parameter)
    fresh.step()
    assert fresh.state[now.dddd]["step"] == 1


def test_the_size_of_a_state_is_known_before_the_first_step() -> None:
    model = Model("a", "bb")
    stepped_state = stepped(Model("a", "bb")).state_dict()
    steps = 2 * 4
    assert bytes_to_come(torch.optim.AdamW(model.parameters())) == tree_bytes(stepped_state) - steps
    assert bytes_to_come(stepped(model)) == 0
