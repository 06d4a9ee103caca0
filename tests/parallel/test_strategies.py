"""The strategy that the cluster names, and regional compilation that changes no value."""

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from clip_lightning.config.schema import ClusterConfig
from clip_lightning.errors import UserError
from clip_lightning.parallel import compile, strategy
from clip_lightning.parallel.fsdp import ShardedStrategy
from tests.support.small_run import global_batch, small_config, small_module


def test_strategies_by_name() -> None:
    assert strategy.build(ClusterConfig(name="one")) == "auto"
    assert isinstance(strategy.build(ClusterConfig(name="two", strategy="ddp", devices=2)), DDPStrategy)
    for settings, size in (
        ({"strategy": "fsdp"}, 8),
        ({"strategy": "hsdp"}, 4),
        ({"strategy": "hsdp", "shard_size": 2}, 2),
    ):
        sharded = strategy.build(ClusterConfig(name="four", nodes=2, devices=4, **settings))
        assert isinstance(sharded, ShardedStrategy)
        assert sharded.shard_size == size


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (ClusterConfig(name="x", strategy="dpp"), r"cluster\.strategy=dpp"),
        (ClusterConfig(name="x", devices=2), "cluster=ddp"),
    ],
)
def test_what_cannot_be_built_is_reported(cluster: ClusterConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        strategy.build(cluster)


@pytest.mark.ci
def test_compiled_blocks_give_the_same_features() -> None:
    model, batch = small_module(small_config()).model, global_batch(0)
    names = model.state_dict().keys()
    eager = model(batch.images, batch.tokens, batch.lengths)
    compile.apply(model)
    compiled = model(batch.images, batch.tokens, batch.lengths)
    torch.testing.assert_close(compiled.image, eager.image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.text, eager.text, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == names
