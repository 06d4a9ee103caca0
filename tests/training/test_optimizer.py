"""What decays: matrices; not gains, biases, position embeddings, single tokens, scale and bias of the logits."""

import pytest
import torch

from clip_lightning.config.schema import OptimizerConfig
from clip_lightning.training.optimizer import build_optimizer, decays
from tests.support.small_run import small_config, small_module


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("vision.backbone.patch_embed.proj.weight", (8, 3, 4, 4), True),
        ("text.encoder.embeddings.token_embedding.weight", (10, 8), True),
        ("vision.projection.weight", (8, 8), True),
        ("vision.backbone.norm.weight", (8,), False),
        ("vision.backbone.blocks.0.attn.qkv.bias", (8,), False),
        ("vision.backbone.pos_embed", (1, 5, 8), False),
        ("vision.backbone.cls_token", (1, 1, 8), False),
        ("vision.backbone.head.pos_embed", (5, 8), False),
        ("text.encoder.embeddings.position_embedding.weight", (7, 8), False),
        ("text.encoder.embeddings.position_embeddings.weight", (7, 8), False),
        ("text.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 4), False),
        ("log_logit_scale", (1,), False),
        ("logit_bias", (1,), False),
    ],
)
def test_decay_by_name_and_shape(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert decays(name, torch.nn.Parameter(torch.zeros(shape))) is expected


def test_every_trained_parameter_is_in_one_group_and_locked_ones_in_none() -> None:
    config = small_config()
    config.model.text.locked = True
    model = small_module(config).model
    optimizer = build_optimizer(
        model, OptimizerConfig(beta2=0.98, eps=1e-6, weight_decay=0.2), 1e-3, torch.device("cpu")
    )
    decaying, still = ([id(parameter) for parameter in group["params"]] for group in optimizer.param_groups)
    trained = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    assert sorted(decaying + still) == sorted(trained)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert not any(trained[parameter].startswith("text.encoder") for parameter in decaying + still)
