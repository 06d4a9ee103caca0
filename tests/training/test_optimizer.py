"""What decays: matrices; not gains, biases, position embeddings, single tokens, scale and bias of the logits."""

from typing import Any

import pytest
import torch

from clip_lightning.config import compose
from clip_lightning.config.lengths import Lengths
from clip_lightning.config.schema import Config, OptimizerConfig
from clip_lightning.data.batches import Batch
from clip_lightning.errors import UserError
from clip_lightning.training.optimizer import build_optimizer, decays, state_size
from tests.parallel.resume_program import Continue
from tests.support.small_run import EPOCH, GLOBAL_BATCH, Recorder, Stream, fit, small_config, small_module


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
    optimizer = build_optimizer(model, OptimizerConfig(beta2=0.98, eps=1e-6, weight_decay=0.2), 1e-3)
    decaying, still = ([id(parameter) for parameter in group["params"]] for group in optimizer.param_groups)
    trained = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    assert sorted(decaying + still) == sorted(trained)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert not any(trained[parameter].startswith("text.encoder") for parameter in decaying + still)


OTHERS: dict[str, dict[str, Any]] = {
    "torch.optim.SGD": {"momentum": 0.9, "fused": True},
    "torch.optim.Adafactor": {},
    "timm.optim.Lion": {"betas": [0.9, 0.99]},
    "timm.optim.Lamb": {},
    "clip_lightning.training.optimizer.MuonWithAdamW": {},
}


def other_config(target: str, **compute: Any) -> Config:
    config = small_config(**compute)
    config.optimizer = OptimizerConfig(name="other", weight_decay=0.1, _target_=target, options=dict(OTHERS[target]))
    return config


class Poisoned(Recorder):
    """Its third batch has an image that is not a number."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        images = batch.images.float() / 255
        if batch_idx == 2:
            images[3, 0, 0, 0] = torch.nan
        before = {name: value.clone() for name, value in self.everything().items()}
        super().training_step(batch._replace(images=images), batch_idx)
        if batch_idx == 2:
            after = self.everything()
            self.changed = [name for name, value in before.items() if not torch.equal(value, after[name])]

    def everything(self) -> dict[str, torch.Tensor]:
        found = dict(self.model.state_dict())
        for number, kept in self.trainer.optimizers[0].state_dict()["state"].items():
            found |= {f"{number} {name}": value for name, value in kept.items() if isinstance(value, torch.Tensor)}
        return found


@pytest.mark.slow
@pytest.mark.parametrize("target", OTHERS)
def test_another_optimizer_learns_skips_a_step_and_resumes_with_its_bits(target: str) -> None:
    config = other_config(target)
    module = Poisoned(config, Lengths(20 * GLOBAL_BATCH, EPOCH))
    begun = {name: value.clone() for name, value in module.model.state_dict().items()}
    fit(module, Stream(0, 4))
    assert [bool(step.is_skipped) for step in module.steps] == [False, False, True, False]
    assert module.changed == []
    learned = module.model.state_dict()
    changed = [not torch.equal(begun[name], learned[name]) for name, _ in module.model.named_parameters()]
    assert sum(changed) > 0.75 * len(changed)
    assert {group["lr"] for group in module.trainer.optimizers[0].param_groups} == {module.steps[-1].learning_rate}

    in_one_go, half, resumed = (small_module(other_config(target)) for _ in range(3))
    fit(in_one_go, Stream(0, 4))
    fit(half, Stream(0, 2))
    kept: dict[str, Any] = {}
    half.on_save_checkpoint(kept)
    fit(resumed, Stream(2, 4), callbacks=[Continue((half.state_dict(), half.trainer.optimizers[0].state_dict(), kept))])
    expected, found = in_one_go.model.state_dict(), resumed.model.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.slow
def test_fp16_finds_its_loss_scale_with_an_optimizer_that_cannot_skip_on_the_device() -> None:
    module = small_module(other_config("timm.optim.Lion", precision="fp16"))
    fit(module, Stream(0, 12))
    skipped = [bool(step.is_skipped) for step in module.steps]
    first = skipped.index(False)
    assert 0 < first < 10
    assert not any(skipped[first:])


@pytest.mark.parametrize(
    ("target", "size"),
    [(None, 2), ("torch.optim.SGD", 1), ("torch.optim.Adafactor", 0), ("timm.optim.Lion", 1), ("timm.optim.Lamb", 2)],
)
def test_the_memory_estimate_knows_the_state(target: str | None, size: int) -> None:
    config = small_config() if target is None else other_config(target)
    assert round(state_size(config.optimizer)) == size


def test_what_an_optimizer_does_not_take_is_a_sentence() -> None:
    model = small_module(small_config()).model
    for target, options, match in (
        ("torch.optim.Muon", {}, "optimizer=muon"),
        ("torch.optim.SGD", {"momentun": 0.9}, "momentun"),
        ("torch.optim.Nothing", {}, "cannot be imported"),
        ("builtins.dict", {}, "[Oo]ptimizer"),
    ):
        with pytest.raises(UserError, match=match):
            build_optimizer(model, OptimizerConfig(_target_=target, options=dict(options)), 1e-3)


@pytest.mark.slow
def test_keys_of_the_optimizer_that_have_no_effect_are_refused() -> None:
    def found(*settings: str) -> list[str]:
        try:
            compose.load("train", settings)
        except UserError as error:
            return list(error.problems)
        return []

    for name in ("sgd", "lion", "lamb", "adafactor", "muon"):
        assert found(f"optimizer={name}") == []
    assert "optimizer.options" in found("optimizer.options.momentum=0.9")[0]
    assert "optimizer.beta2" in found("optimizer=sgd", "optimizer.beta2=0.9")[0]
    assert "compute.learning_rate" in found("optimizer=sgd", "optimizer.options.lr=1")[0]
    assert "Adafactor" in found("optimizer=adafactor", "cluster=fsdp", "cluster.devices=2")[0]
