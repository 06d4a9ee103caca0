"""Small random models of every kind that is exported, each with its tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerFast

from clip_lightning import load_config
from clip_lightning.config.foreign import towers
from clip_lightning.config.schema import LossConfig, ModelConfig, TextConfig, TokenizerConfig, VisionConfig
from clip_lightning.model.clip import build_clip
from clip_lightning.tokenizer import build_tokenizer
from clip_lightning.training.any_model import OpenedModel

CONTEXT, WORDS = 77, 300
WIDTH = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "max_position_embeddings": 90, "pad_token_id": 1, **WIDTH},
    "roberta": {"model_type": "roberta", "max_position_embeddings": 90, "pad_token_id": 1, **WIDTH},
    "xlm-roberta": {"model_type": "xlm-roberta", "max_position_embeddings": 90, "pad_token_id": 1, **WIDTH},
    "mpnet": {"model_type": "mpnet", "max_position_embeddings": 90, "pad_token_id": 1, **WIDTH},
    "distilbert": {
        "model_type": "distilbert",
        "max_position_embeddings": 90,
        "pad_token_id": 1,
        "dim": 64,
        "hidden_dim": 128,
        "n_layers": 2,
        "n_heads": 2,
    },
    "qwen2": {
        "model_type": "qwen2",
        "pad_token_id": 1,
        "max_position_embeddings": 90,
        "num_key_value_heads": 2,
        **WIDTH,
    },
}


def clip(activation: str, folder: Path) -> ModelConfig:
    vision = towers.clip_vit(width=128, layers=2, heads=2, patch=16, pixels=64, activation=activation)
    text = towers.text_transformer(
        kind="clip_text_model",
        vocab=49408,
        context=CONTEXT,
        width=64,
        layers=2,
        heads=1,
        intermediate=256,
        activation=activation,
    )
    return ModelConfig(name="small", embed_dim=48, vision=vision, text=text)


def resnet(folder: Path) -> ModelConfig:
    model = clip("quick_gelu", folder)
    found = towers.resnet((3, 4, 6, 3), 48, 64)
    assert found is not None
    model.vision = found
    return model


def siglip(folder: Path) -> ModelConfig:
    vision = towers.siglip_vit(
        width=64, layers=2, heads=2, patch=16, pixels=64, mlp_ratio=4.0, activation="gelu_pytorch_tanh"
    )
    text = towers.text_transformer(
        kind="siglip_text_model",
        vocab=WORDS,
        context=CONTEXT,
        width=64,
        layers=2,
        heads=2,
        intermediate=256,
        activation="gelu_pytorch_tanh",
        eps=1e-6,
        pool="last",
        projection_bias=True,
        tokenizer=TokenizerConfig(kind="hub", path=str(hub_folder(folder, {})), vocab_size=WORDS, clean="canonical"),
    )
    return ModelConfig(name="small", embed_dim=64, loss="sigmoid", vision=vision, text=text)


def full_siglip(folder: Path) -> ModelConfig:
    """The image tower of SigLIP B/16, which open_clip builds from its name alone."""
    model = siglip(folder)
    model.embed_dim = 768
    model.vision = towers.siglip_vit(
        width=768, layers=12, heads=12, patch=16, pixels=224, mlp_ratio=4.0, activation="gelu"
    )
    return model


def pair(kind: str, pool: str, projection: str, folder: Path) -> ModelConfig:
    """timm's smallest vision transformer with an encoder of Hugging Face."""
    config = ENCODERS[kind] | {"vocab_size": WORDS}
    path = str(hub_folder(folder, config))
    text = TextConfig(
        name="small",
        huggingface=path,
        config=config,
        context_length=CONTEXT,
        pool=pool,
        mask_padding=True,
        projection=projection,
        tokenizer=TokenizerConfig(kind="hub", path=path, vocab_size=WORDS, clean="whitespace"),
    )
    vision = VisionConfig(name="small", timm="test_vit2", image_size=160, mean=[0.5] * 3, std=[0.5] * 3)
    return ModelConfig(name="small", embed_dim=48, vision=vision, text=text)


def chinese(folder: Path) -> ModelConfig:
    model = pair("bert", "cls", "linear", folder)
    model.vision = clip("quick_gelu", folder).vision
    return model


KINDS: dict[str, tuple[Callable[[Path], ModelConfig], list[str]]] = {
    "ViT, QuickGELU": (lambda folder: clip("quick_gelu", folder), ["transformers", "open_clip"]),
    "ViT, GELU": (lambda folder: clip("gelu", folder), ["transformers", "open_clip"]),
    "ResNet-50": (resnet, ["open_clip"]),
    "SigLIP": (siglip, ["transformers"]),
    "SigLIP with timm's B/16": (full_siglip, ["open_clip"]),
    "ViT + BERT, first token": (chinese, ["transformers", "open_clip"]),
    "timm + BERT": (lambda folder: pair("bert", "cls", "linear", folder), ["open_clip"]),
    "timm + BERT, pooling layer": (
        lambda folder: pair("bert", "pooler", "linear", folder),
        ["transformers", "open_clip"],
    ),
    "timm + RoBERTa": (lambda folder: pair("roberta", "mean", "mlp", folder), ["open_clip"]),
    "timm + XLM-R": (lambda folder: pair("xlm-roberta", "mean", "linear", folder), ["open_clip"]),
    "timm + XLM-R, pooling layer": (lambda folder: pair("xlm-roberta", "pooler", "linear", folder), ["transformers"]),
    "timm + MPNet, pooling layer": (lambda folder: pair("mpnet", "pooler", "linear", folder), ["transformers"]),
    "timm + MPNet": (lambda folder: pair("mpnet", "mean", "linear", folder), ["safetensors"]),
    "timm + DistilBERT": (lambda folder: pair("distilbert", "cls", "linear", folder), ["safetensors"]),
    "timm + Qwen2, last token": (lambda folder: pair("qwen2", "eot", "linear", folder), ["safetensors"]),
}


def hub_folder(folder: Path, config: dict[str, Any]) -> Path:
    """A folder like a repository of the hub: a small byte-level BPE with special tokens, and the encoder's config."""
    path = folder / "encoder"
    if not path.is_dir():
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        specials = ["<s>", "<pad>", "</s>"]  # in the order of RoBERTa
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=WORDS, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(
            ["a photo of a cat and two dogs", "a red circle left of a blue square"] * 9, trainer
        )
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            cls_token="<s>",
            sep_token="</s>",
        )
        wrapped.save_pretrained(path)
    if config:
        inline = dict(config)
        AutoConfig.for_model(inline.pop("model_type"), **inline).save_pretrained(path)
    return path


def opened(config: ModelConfig) -> OpenedModel:
    """A model with random weights of training's size, and random statistics where it normalises over the batch."""
    torch.manual_seed(3)
    loss = LossConfig(name=config.loss, logit_bias_init=-7.5 if config.loss == "sigmoid" else None)
    model = build_clip(config, loss).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == 1 or parameter.std() == 0:  # norms and biases, else a wrong name would not show
                parameter.add_(torch.randn_like(parameter) * 0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    run = load_config("model=tiny", "data=scenes")
    run.model, run.loss = config, loss
    return OpenedModel(model, build_tokenizer(config.text, None, None), config, run, None, None)
