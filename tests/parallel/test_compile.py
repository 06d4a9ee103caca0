"""Compilation makes a few graphs, however many blocks and micro-batches there are, and changes no value."""

from collections.abc import Iterator
from functools import partialmethod

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from clip_lightning.config.schema import Config
from clip_lightning.parallel import activation_checkpointing, compile
from tests.support.small_run import (
    Recorder,
    Stream,
    check_close,
    config_with_batch_norm,
    fit,
    small_config,
    small_module,
)

pytestmark = pytest.mark.ci
Graphs = CompileCounterWithBackend


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """Counts graphs, and leaves inductor out, which takes seconds for each."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=counter))
    # Blocks that torch gives up on would run eagerly and make no graph.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield counter


def deep_config(micro_batch: int | None) -> Config:
    """Twelve image blocks, of which eleven drop branches, each with another probability."""
    config = small_config()
    config.model.vision.options |= {"depth": 12, "embed_dim": 8}
    config.model.vision.drop_path = 0.3
    config.cluster.micro_batch = micro_batch
    return config


def trained(config: Config, checkpointing: str, is_compiled: bool) -> Recorder:
    module = small_module(config)
    activation_checkpointing.apply(module.model, checkpointing)
    if is_compiled:
        compile.apply(module.model)
    fit(module, Stream(0, 2))
    return module


def check_as_eager(config: Config, checkpointing: str = "none") -> None:
    modules = [trained(config, checkpointing, is_compiled) for is_compiled in (True, False)]
    losses = [{"losses": torch.stack([step.loss for step in module.steps])} for module in modules]
    compiled, eager = (module.gradients | loss for module, loss in zip(modules, losses, strict=True))
    check_close(compiled, eager, 1e-5)
    torch.testing.assert_close(*(dict(module.model.named_buffers()) for module in modules), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("micro_batch", "num_graphs"), [(None, 4), (7, 10)])
def test_blocks_that_drop_branches_share_graphs(graphs: Graphs, micro_batch: int | None, num_graphs: int) -> None:
    check_as_eager(deep_config(micro_batch))
    assert graphs.frame_count == num_graphs


@pytest.mark.parametrize(("micro_batch", "num_graphs"), [(None, 9), (2, 16)])
def test_batch_norm_shares_graphs_in_any_number_of_pieces(
    graphs: Graphs, micro_batch: int | None, num_graphs: int
) -> None:
    check_as_eager(config_with_batch_norm(micro_batch or 24, micro_batch))
    assert graphs.frame_count == num_graphs


def test_what_is_a_tensor_for_compilation_adds_no_names() -> None:
    models = [small_module(config).model for config in (deep_config(None), config_with_batch_norm(24))]
    names = {name.split(".")[-1] for model in models for name in model.state_dict()}
    assert not names & {"layer", "keep", "seen"}


@pytest.mark.parametrize(
    ("config", "checkpointing", "num_graphs"),
    [(deep_config(None), "full", 4), (deep_config(None), "selective", 4), (config_with_batch_norm(24), "full", 9)],
)
def test_checkpointed_blocks_are_compiled_too(
    graphs: Graphs, config: Config, checkpointing: str, num_graphs: int
) -> None:
    check_as_eager(config, checkpointing)
    assert graphs.frame_count == num_graphs


@pytest.mark.parametrize(
    ("config", "checkpointing"), [(deep_config(None), "none"), (config_with_batch_norm(24), "full")]
)
def test_inductor_computes_the_same(config: Config, checkpointing: str) -> None:
    torch._dynamo.reset()
    check_as_eager(config, checkpointing)
