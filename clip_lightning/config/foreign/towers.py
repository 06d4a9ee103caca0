"""Towers that several libraries describe: image and text transformers of CLIP and SigLIP, by their sizes."""

from typing import Any

from clip_lightning.config.schema import TextConfig, TokenizerConfig, VisionConfig

INCEPTION = [0.5, 0.5, 0.5]
RESNETS: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnet50_clip",
    (3, 4, 23, 3): "resnet101_clip",
    (4, 6, 10, 6): "resnet50x4_clip",
    (6, 8, 18, 8): "resnet50x16_clip",
    (3, 15, 36, 10): "resnet50x64_clip",
}
# Each architecture's own size; timm builds its attention pooling for it.
RESNET_PIXELS = {"resnet50x4_clip": 288, "resnet50x16_clip": 384, "resnet50x64_clip": 448}
# Names of activations, by transformers' name: timm's.
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def clip_vit(
    *,
    width: int,
    layers: int,
    heads: int,
    patch: int,
    pixels: int,
    mlp_ratio: float = 4.0,
    activation: str = "gelu",
    **options: Any,
) -> VisionConfig:
    """The vision transformer of CLIP: a class token, a norm before the blocks, no bias of the patches.

    Args:
        patch, pixels: sides.
        activation: transformers' name of it.
        options: further arguments of timm.create_model.
    """
    known = {"patch_size": patch, "embed_dim": width, "depth": layers, "num_heads": heads, "mlp_ratio": mlp_ratio}
    default = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0}
    changed: dict[str, Any] = {key: value for key, value in known.items() if value != default[key]}
    name = "vit_base_patch16_clip_224"
    if patch == 32:
        name = "vit_base_patch32_clip_224"
        changed.pop("patch_size")
    if activation == "quick_gelu":
        name = name.replace("_224", "_quickgelu_224")
    elif activation != "gelu":
        changed["act_layer"] = ACTIVATIONS[activation]
    if pixels != 224:
        changed["img_size"] = pixels
    return VisionConfig(name="auto", timm=name, image_size=pixels, options=changed | options)


def siglip_vit(
    *, width: int, layers: int, heads: int, patch: int, pixels: int, mlp_ratio: float, activation: str
) -> VisionConfig:
    """The vision transformer of SigLIP, pooled by attention, without a projection."""
    known = {"patch_size": patch, "embed_dim": width, "depth": layers, "num_heads": heads, "mlp_ratio": mlp_ratio}
    default = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0}
    options: dict[str, Any] = {key: value for key, value in known.items() if value != default[key]}
    if activation != "gelu":
        options["act_layer"] = ACTIVATIONS[activation]
    if pixels != 224:
        options["img_size"] = pixels
    name = "vit_base_patch16_siglip_224"
    return VisionConfig(
        name="auto",
        timm=name,
        image_size=pixels,
        mean=list(INCEPTION),
        std=list(INCEPTION),
        pool="map",
        projection="none",
        resize="squash",
        options=options,
    )


def resnet(layers: tuple[int, ...], embed_dim: int, pixels: int) -> VisionConfig | None:
    """The ResNet of CLIP with attention pooling, whose output layer is the projection; None for other depths."""
    name = RESNETS.get(layers)
    if name is None:
        return None
    return VisionConfig(
        name="auto",
        timm=name,
        image_size=pixels,
        projection="none",
        batch_norm=True,
        options={"num_classes": embed_dim} | ({} if pixels == RESNET_PIXELS.get(name, 224) else {"img_size": pixels}),
    )


def text_transformer(
    *,
    kind: str,
    vocab: int,
    context: int,
    width: int,
    layers: int,
    heads: int,
    intermediate: int,
    activation: str,
    eps: float = 1e-5,
    pool: str = "eot",
    projection: str = "linear",
    projection_bias: bool = False,
    tokenizer: TokenizerConfig | None = None,
) -> TextConfig:
    """The text transformer of CLIP (`clip_text_model`, causal) or of SigLIP (`siglip_text_model`, not causal).

    Args:
        vocab: rows of the embedding.
        context: positions.
        activation: transformers' name of it.
        pool: eot or last; the last position is that of a padded text.
    """
    end = vocab - 1 if kind == "clip_text_model" else 1
    config: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "layer_norm_eps": eps,
    }
    config |= {"bos_token_id": max(0, end - 1), "eos_token_id": end} if end != 49407 else {}
    if kind == "siglip_text_model":
        config |= {"bos_token_id": 1, "eos_token_id": 1}
    return TextConfig(
        name="auto",
        config=config,
        context_length=context,
        pool=pool,
        pad_to_context=pool == "last",
        projection=projection,
        projection_bias=projection_bias,
        tokenizer=tokenizer or TokenizerConfig(vocab_size=vocab),
    )
