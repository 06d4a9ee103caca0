"""The keys of `model`: two towers, their tokenizer, and the width of the space that they share."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from clip_lightning.config.schema.field import Rule, key, part

OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]
THREE_COLORS = Rule("three numbers: red, green, blue", lambda value: len(value) == 3)


@dataclass
class TokenizerConfig:
    """How captions become token ids."""

    kind: str = key(
        "paper",
        "paper (CLIP's BPE), hub (a Hugging Face tokenizer), trained (on the run's own captions)",
        choices=("paper", "hub", "trained"),
    )
    path: str | None = key(None, "paper: another merges file; hub: hub name or local folder; trained: null")
    vocab_size: int = key(49408, "what the encoder's embedding holds; trained: the size to train", above=0)
    clean: str = key(
        "none",
        "hub: none, canonical (SigLIP: no punctuation, lower case), whitespace (open_clip: repaired Unicode, HTML "
        "entities, single spaces); paper, trained: their own",
        choices=("none", "canonical", "whitespace"),
    )
    strip_separator: bool = key(
        False, "hub: padding takes the place of the last special token (CLIPA's models)", hash_default=False
    )


@dataclass
class VisionConfig:
    """The image tower: a timm backbone, or the user's own."""

    name: str = key(MISSING, "the tower's name in messages and in the name of a pair")
    timm: str | None = key(None, "timm architecture; null only with _target_")
    image_size: int = key(MISSING, "pixels, square", above=0)
    mean: list[float] = key(OPENAI_MEAN, "of pixels in 0..1", rule=THREE_COLORS)
    std: list[float] = key(OPENAI_STD, "of pixels in 0..1", rule=THREE_COLORS)
    pool: str | None = key(None, "timm's global_pool (token, avg, map, ...); null: the architecture's own")
    projection: str = key(
        "linear",
        "linear, mlp (2 layers, the hidden one twice as wide as embed_dim), none (the tower itself gives embed_dim, "
        "see options.num_classes)",
        choices=("linear", "mlp", "none"),
    )
    projection_bias: bool = key(False, "the last layer of the projection has a bias", hash_default=False)
    resize: str = key(
        "shortest",
        "images in use: shortest (short side to image_size, centre), squash (both sides), longest (long side, padded)",
        choices=("shortest", "squash", "longest"),
        hash_default=False,
    )
    interpolation: str = key(
        "bicubic",
        "of the resize of images in use: bicubic, bilinear",
        choices=("bicubic", "bilinear"),
        hash_default=False,
    )
    init: str = key("timm", "openai_vit, openai_resnet, timm", choices=("timm", "openai_vit", "openai_resnet"))
    batch_norm: bool = key(
        False, "the tower normalises over the batch (checked before the run, verified after the build)"
    )
    patch_dropout: float = key(0.0, "share of patches left out in training (FLIP)", minimum=0, below=1)
    drop_path: float = key(
        0.0, "share of residual branches left out in training (stochastic depth)", minimum=0, below=1
    )
    pretrained: bool | str = key(False, "false, true (timm's weights, needs the hub), or a path")
    locked: bool = key(False, "LiT: frozen, in evaluation mode, without a graph; its linear projection still learns")
    options: dict[str, Any] = key({}, "further arguments of timm.create_model or of _target_")
    _target_: str | None = key(None, "import path of the user's own builder; never taken from a checkpoint")


@dataclass
class TextConfig:
    """The text tower: a Hugging Face encoder by name, folder or inline configuration."""

    name: str = key(MISSING, "the tower's name in messages and in the name of a pair")
    huggingface: str | None = key(
        None, "hub name or local folder, of the configuration or, beside `config`, of the weights"
    )
    config: dict[str, Any] = key({}, "of Hugging Face (whole: has model_type), or of _target_")
    context_length: int = key(77, "tokens, start and end token included", above=0)
    pool: str = key(
        "eot",
        "eot, cls, mean, last, pooler (the encoder's own pooling layer)",
        choices=("eot", "cls", "mean", "last", "pooler"),
    )
    mask_padding: bool = key(False, "padding is masked in attention (bidirectional encoders)")
    pad_to_context: bool = key(
        False, "every text is padded to context_length (SigLIP); otherwise to the batch's longest"
    )
    projection: str = key("linear", "linear, mlp, none", choices=("linear", "mlp", "none"))
    projection_bias: bool = key(False, "the linear projection has a bias")
    init: str = key("huggingface", "openai, huggingface", choices=("huggingface", "openai"))
    pretrained: bool | str = key(False, "false, true (needs the hub), or a path")
    locked: bool = key(False, "as model.vision.locked")
    tokenizer: TokenizerConfig = part(TokenizerConfig)
    _target_: str | None = key(None, "import path of the user's own builder; never taken from a checkpoint")


@dataclass
class ModelConfig:
    """Two towers and the width of the space they share."""

    name: str = key(MISSING, "first part of the run's name; picks the recipe of compute")
    embed_dim: int = key(MISSING, "width of the space that images and texts share", above=0)
    loss: str = key("softmax", "the loss option taken when `loss=` is not given", science=False)
    pretrained: str | None = key(
        None,
        "weights of both towers: a file, a folder, a run, hf-hub:NAME, openai:NAME, open_clip:NAME/TAG; see "
        "docs/weights.md",
        hash_default=False,
    )
    allow_missing: list[str] = key(
        [], "names, or beginnings of names, that model.pretrained may lack or have too many", hash_default=False
    )
    vision: VisionConfig = part(VisionConfig)
    text: TextConfig = part(TextConfig)
