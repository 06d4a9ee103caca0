"""What would make features depend on the pairs beside them is reported; what only looks like it is accepted."""

from typing import Any

import pytest
from torch import Tensor

from clip_lightning.config.phases import Phase
from clip_lightning.config.schema import Config, TextConfig, VisionConfig
from clip_lightning.errors import UserError
from clip_lightning.training.batch_invariance import check_draws
from tests.support.small_run import (
    CONTEXT,
    GLOBAL_BATCH,
    IMAGE_SIZE,
    VOCABULARY,
    Stream,
    check_close,
    config_with_batch_norm,
    fit,
    small_config,
    small_module,
)

BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CONVBERT = {**BERT, "model_type": "convbert", "embedding_size": 32}


def with_text(encoder: dict[str, Any], **settings: Any) -> Config:
    config = small_config()
    config.model.text = TextConfig(
        name="other", config=encoder, context_length=CONTEXT, init="huggingface", pool="mean", **settings
    )
    config.model.text.tokenizer.vocab_size = VOCABULARY
    return config


def with_vision(**options: Any) -> Config:
    config = small_config()
    config.model.vision.options = {**config.model.vision.options, **options}
    return config


def check(config: Config) -> None:
    check_draws(config, [Phase(0, config.model.vision.image_size, CONTEXT, config.model.vision.patch_dropout)])


@pytest.mark.parametrize(
    ("config", "fixes"),
    [
        (with_text(BERT), r"mask_padding=true or model\.text\.pad_to_context=true"),
        (with_text(CONVBERT, mask_padding=True), r"write model\.text\.pad_to_context=true"),
    ],
    ids=["bert without a mask", "convolutions over padding"],
)
def test_padding_that_changes_features_is_refused(config: Config, fixes: str) -> None:
    with pytest.raises(UserError, match=rf"the padding after a caption changes its features.*{fixes}"):
        small_module(config)


@pytest.mark.parametrize(
    "config",
    [with_text(BERT, mask_padding=True), with_text(BERT, pad_to_context=True), small_config()],
    ids=["masked", "always padded", "causal"],
)
def test_padding_that_reaches_no_feature_is_accepted(config: Config) -> None:
    small_module(config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (with_vision(attn_drop_rate=0.1), "model.vision=small drops at random inside an operation"),
        (with_text({**BERT, "attention_probs_dropout_prob": 0.1}), "model.text=other drops at random inside an oper"),
        (with_text({**BERT, "model_type": "clip_text_model", "attention_dropout": 0.3}), "model.text=other drops"),
    ],
    ids=["timm", "bert", "functional"],
)
def test_a_draw_that_no_sample_decides_is_reported(config: Config, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(config)


def test_draws_in_windows_are_reported() -> None:
    config = small_config()
    options = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 1], "window_size": 2, "proj_drop_rate": 0.1}
    config.model.vision = VisionConfig(
        name="windows", timm="swin_tiny_patch4_window7_224", image_size=IMAGE_SIZE, options=options
    )
    with pytest.raises(UserError, match="rows for 2 samples, as one with windows does"):
        check(config)


def first_step(config: Config, micro_batch: int | None) -> dict[str, Tensor]:
    """Loss and gradients."""
    config.cluster.micro_batch = micro_batch
    module = small_module(config)
    fit(module, Stream(0, 1))
    return {"losses": module.steps[0].loss, **module.gradients}


def with_drops() -> Config:
    config = with_text({**BERT, "hidden_dropout_prob": 0.2}, mask_padding=True)
    config.model.vision.options["proj_drop_rate"] = 0.2
    config.model.vision.patch_dropout = config.model.vision.drop_path = 0.3
    return config


@pytest.mark.slow
@pytest.mark.parametrize("config", [with_drops(), small_config()], ids=["every layer that drops by sample", "none"])
def test_draws_by_sample_are_accepted(config: Config) -> None:
    check(config)


def test_micro_batches_drop_what_the_undivided_batch_drops() -> None:
    whole, cut = (first_step(with_drops(), micro_batch) for micro_batch in (None, 8))
    check_close(cut, whole, 1e-6)
    undropped = with_text({**BERT}, mask_padding=True)
    assert (first_step(undropped, None)["losses"] - whole["losses"]).abs() > 1e-3


def test_the_share_of_patches_has_one_key() -> None:
    with pytest.raises(UserError, match=r"write model\.vision\.patch_dropout"):
        small_module(with_vision(patch_drop_rate=0.5))


def test_a_users_own_loss_gets_its_four_arguments_in_micro_batches_too() -> None:
    config = small_config()
    config.loss.name, config.loss._target_ = "own", "tests.loss.test_build_loss.OwnLoss"
    whole, cut = (first_step(config, micro_batch) for micro_batch in (None, 8))
    check_close(cut, whole, 1e-6)


def test_a_locked_tower_with_batch_norm_takes_micro_batches() -> None:
    config = config_with_batch_norm(group=GLOBAL_BATCH, micro_batch=8)
    config.model.vision.locked = True
    module = small_module(config)
    fit(module, Stream(0, 1))
    assert module.steps[0].loss.isfinite()
