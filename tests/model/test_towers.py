"""Any two towers make a CLIP: pooling as declared, no parameter without a gradient, weights by tower, frozen or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from transformers import AutoConfig, AutoModel

from clip_lightning.config.schema import LossConfig, ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from clip_lightning.errors import UserError
from clip_lightning.model.clip import CLIP, build_clip
from clip_lightning.model.text import TextTower
from clip_lightning.model.vision import VisionTower

WORDS, CONTEXT = 60, 24
_BERT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "clip_text_model": {**_BERT, "max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2},
    "siglip_text_model": {**_BERT, "max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
    "bert": _BERT,
    "roberta": {**_BERT, "pad_token_id": 1},
    "xlm-roberta": {**_BERT, "pad_token_id": 1},
    "mpnet": _BERT,
    "electra": {**_BERT, "embedding_size": 16},
    "albert": {**_BERT, "embedding_size": 16},
    "deberta-v2": {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {**_BERT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
    | {"sep_token_id": 2},
    "t5": {**_T5, "feed_forward_proj": "gated-gelu"},
    "mt5": _T5,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "bos_token_id": 1, "eos_token_id": 2},
}
BACKBONES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"options": {"embed_dim": 32, "depth": 2, "num_heads": 2}},
    "vit_base_patch32_clip_quickgelu_224": {"init": "openai_vit"}
    | {"options": {"embed_dim": 64, "depth": 2, "num_heads": 1}},
    "vit_base_patch16_siglip_224": {"pool": "map", "options": {"embed_dim": 32, "depth": 2, "num_heads": 2}},
    "resnet50_clip": {
        "init": "openai_resnet",
        "batch_norm": True,
        "projection": "none",
        "options": {"num_classes": 16},
    },
    "resnet18": {"batch_norm": True},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"options": {"embed_dim": 24, "depths": [1, 1], "num_heads": [1, 2]}},
    "efficientnet_b0": {"batch_norm": True},
    "mobilenetv3_small_050": {"batch_norm": True},
}


def vision_config(timm: str = "vit_tiny_patch16_224", **changes: Any) -> VisionConfig:
    return VisionConfig(name="own", timm=timm, image_size=64, **{**BACKBONES[timm], **changes})


def text_config(model_type: str = "bert", **changes: Any) -> TextConfig:
    settings: dict[str, Any] = {"pool": "mean", "mask_padding": True, "context_length": CONTEXT}
    config = {"model_type": model_type, "vocab_size": WORDS, **ENCODERS[model_type]}
    tokenizer = TokenizerConfig(kind="trained", vocab_size=WORDS)
    return TextConfig(**{**settings, "name": "own", "config": config, "tokenizer": tokenizer, **changes})


def build(vision: VisionConfig, text: TextConfig) -> CLIP:
    return build_clip(ModelConfig(name="own", embed_dim=16, vision=vision, text=text), LossConfig(name="softmax"))


def texts(length: int = CONTEXT) -> tuple[Tensor, Tensor]:
    """Rows of 5, 9, 12 and 16 tokens with ids from 3, filled with 0 up to `length`."""
    generator = torch.Generator().manual_seed(11)
    lengths = torch.tensor([5, 9, 12, 16])
    tokens = torch.randint(3, WORDS, (4, 16), generator=generator)
    tokens = torch.where(torch.arange(16) < lengths[:, None], tokens, 0)
    return nn.functional.pad(tokens, (0, length - 16)), lengths


def pixels() -> Tensor:
    return torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(12))


def check_all_learn(model: CLIP) -> None:
    """Every parameter takes part in the loss: DDP stops where one does not."""
    features = model.train()(pixels(), *texts())
    logits = features.logit_scale * features.image @ features.text.T
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("model_type", ENCODERS)
def test_every_parameter_of_an_encoder_gets_a_gradient(model_type: str) -> None:
    check_all_learn(build(vision_config(), text_config(model_type)))


@pytest.mark.slow
@pytest.mark.parametrize("timm", BACKBONES)
def test_every_parameter_of_a_backbone_gets_a_gradient(timm: str) -> None:
    model = build(vision_config(timm), text_config())
    check_all_learn(model)
    assert model.encode_image(pixels()).shape == (4, 16)


@pytest.mark.parametrize("pool", ["eot", "cls", "mean"])
@pytest.mark.parametrize("model_type", [name for name in ENCODERS if name not in ("clip_text_model", "gpt2")])
def test_features_do_not_depend_on_the_padding(model_type: str, pool: str) -> None:
    tower = TextTower(text_config(model_type, pool=pool), 16).eval()
    with torch.no_grad():
        short, long = tower(*texts(16)), tower(*texts(CONTEXT))
    torch.testing.assert_close(short, long, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["roberta", "bert", "clip_text_model"])
def test_an_id_that_the_encoder_takes_for_padding_is_a_word_like_others(model_type: str) -> None:
    tower = TextTower(text_config(model_type, pool="eot"), 16)
    tokens, lengths = texts()
    tokens[0, 1], tokens[1, 1] = 0, 1
    padding_rows = tower.encoder.get_input_embeddings().weight
    (gradient,) = torch.autograd.grad(tower(tokens, lengths).square().sum(), padding_rows)
    assert gradient[:2].abs().sum(1).min() > 0
    tower.eval()
    changed = tokens.clone()
    changed[:2, 1] = 7
    with torch.no_grad():
        assert (tower(tokens, lengths) - tower(changed, lengths))[:2].abs().amax(1).min() > 1e-5


def test_pools_read_the_named_position() -> None:
    towers = {p: TextTower(text_config(pool=p, pad_to_context=True), 16) for p in ("eot", "cls", "mean", "last")}
    hidden, lengths = torch.randn(2, 4, 32), torch.tensor([2, 4])
    pooled = {pool: tower._pool(hidden, lengths) for pool, tower in towers.items()}
    assert torch.equal(pooled["eot"], torch.stack([hidden[0, 1], hidden[1, 3]]))
    assert torch.equal(pooled["cls"], hidden[:, 0])
    assert torch.equal(pooled["last"], hidden[:, 3])
    torch.testing.assert_close(pooled["mean"], torch.stack([hidden[0, :2].mean(0), hidden[1].mean(0)]))
    with pytest.raises(UserError, match="pad_to_context=true"):
        TextTower(text_config(pool="last"), 16)


def test_bytes_are_normalised_as_the_tower_says() -> None:
    tower = VisionTower(vision_config(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4]), 16).eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels()), tower((pixels() / 255 - mean) / std), atol=1e-6, rtol=1e-5)


def test_dropout_is_off_by_default() -> None:
    def two_passes(config: TextConfig) -> tuple[Tensor, Tensor]:
        tower = TextTower(config, 16).train()
        return tower(*texts()), tower(*texts())

    for model_type in ENCODERS:
        assert torch.equal(*two_passes(text_config(model_type))), model_type
    asked = text_config()
    asked.config["hidden_dropout_prob"] = 0.5
    assert not torch.equal(*two_passes(asked))


def test_scale_is_held_at_its_maximum_and_has_a_shape() -> None:
    model = build(vision_config(), text_config())
    features = model(pixels(), *texts())
    torch.testing.assert_close(features.logit_scale, torch.tensor([1 / 0.07]))
    assert features.logit_bias is None
    torch.testing.assert_close(features.image.norm(dim=-1), torch.ones(4))
    with torch.no_grad():
        model.log_logit_scale.fill_(9)
    model.clamp_logit_scale()
    torch.testing.assert_close(model.log_logit_scale.exp(), torch.tensor([100.0]))


def test_features_are_float32_under_autocast() -> None:
    model = build(vision_config(), text_config())
    with torch.autocast("cpu", torch.bfloat16):
        features = model(pixels(), *texts())
    assert {tensor.dtype for tensor in features[:3]} == {torch.float32}


@pytest.mark.slow
def test_blocks_are_the_repeated_parts_of_both_towers() -> None:
    def kinds(timm: str, model_type: str) -> list[str]:
        return [type(block).__name__ for block in build(vision_config(timm), text_config(model_type)).blocks()]

    assert kinds("vit_tiny_patch16_224", "clip_text_model") == ["Block"] * 2 + ["CLIPEncoderLayer"] * 2
    assert kinds("resnet50_clip", "bert") == ["BottleneckBlock"] * 16 + ["BertLayer"] * 2
    assert kinds("convnext_atto", "t5") == ["ConvNeXtBlock"] * 12 + ["T5Block"] * 2
    assert kinds("vit_base_patch16_siglip_224", "distilbert") == ["Block"] * 2 + ["TransformerBlock"] * 2


def test_locked_towers_stay_as_they_are_and_their_projections_learn(tmp_path: Path) -> None:
    source = build(vision_config("resnet18"), text_config())
    weights = tmp_path / "resnet.pth"
    torch.save(source.vision.backbone.state_dict(), weights)
    source.text.encoder.save_pretrained(tmp_path / "bert")
    model = build(
        vision_config("resnet18", pretrained=str(weights), locked=True),
        text_config(pretrained=str(tmp_path / "bert"), locked=True),
    ).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.1)
    features = model(pixels(), *texts())
    nn.functional.cross_entropy(features.logit_scale * features.image @ features.text.T, torch.arange(4)).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"vision.projection.weight", "text.projection.weight", "log_logit_scale"}


def test_own_towers_are_built_by_their_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_towers.py").write_text(
        "import torch\n"
        "class Pixels(torch.nn.Linear):\n"
        "    def __init__(self, width):\n"
        "        super().__init__(3, width)\n"
        "        self.num_features = width\n"
        "    def forward(self, images): return super().forward(images.mean((2, 3)))\n"
        "class Words(torch.nn.Embedding):\n"
        "    num_features = 12\n"
        "    def __init__(self, rows): super().__init__(rows, 12)\n"
        "    def forward(self, tokens, lengths): return super().forward(tokens).sum(1) / lengths[:, None]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    vision = VisionConfig(name="own", image_size=64, _target_="own_towers.Pixels", options={"width": 20})
    text = TextConfig(name="own", _target_="own_towers.Words", config={"rows": WORDS})
    model = build(vision, text)
    check_all_learn(model)
    assert model.vision.projection.weight.shape == (16, 20)
    assert model.text.projection.weight.shape == (16, 12)
    with pytest.raises(UserError, match=r"model\.vision\._target_=own_towers\.Pixel cannot be imported"):
        build(VisionConfig(name="own", image_size=64, _target_="own_towers.Pixel"), text)


def test_a_folder_gives_an_encoders_architecture_and_only_when_asked_its_weights(tmp_path: Path) -> None:
    source = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=WORDS, **_BERT))
    source.save_pretrained(tmp_path)
    plain = {"config": {}, "huggingface": str(tmp_path)}
    random, loaded = TextTower(text_config(**plain), 16), TextTower(text_config(**plain, pretrained=True), 16)
    mine, theirs = loaded.encoder.state_dict(), source.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert {name for name in theirs if name not in mine} == {"pooler.dense.weight", "pooler.dense.bias"}
    assert random.encoder.config.num_hidden_layers == 2
    assert not torch.equal(
        random.encoder.embeddings.word_embeddings.weight, theirs["embeddings.word_embeddings.weight"]
    )
    assert torch.equal(loaded.eval()(*texts()), loaded.train()(*texts())), "published dropout is off"


@pytest.mark.parametrize(("model_type", "kind"), [("clip", "clip_text_model"), ("siglip", "siglip_text_model")])
def test_a_published_clip_gives_its_text_tower(tmp_path: Path, model_type: str, kind: str) -> None:
    text = {**ENCODERS[kind], "vocab_size": WORDS}
    source = AutoModel.from_config(AutoConfig.for_model(model_type, text_config=text, vision_config=_BERT))
    source.save_pretrained(tmp_path)
    tower = TextTower(text_config(config={}, huggingface=str(tmp_path), pretrained=True, mask_padding=False), 16)
    assert type(tower.encoder) is type(source.text_model)
    theirs = source.text_model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in tower.encoder.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_backbone_weights_come_from_a_file_at_another_image_size(tmp_path: Path, suffix: str) -> None:
    import timm
    from safetensors.torch import save_file

    options = BACKBONES["vit_tiny_patch16_224"]["options"]
    source = timm.create_model("vit_tiny_patch16_224", img_size=128, **options)  # with its classes
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    tower = VisionTower(vision_config(pretrained=str(path)), 16)
    assert torch.equal(tower.backbone.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    assert tower.backbone.pos_embed.shape == (1, 17, 32)
