"""What a config trains, in the words of a model card: the export's README.md and the report of a run share it."""

from clip_lightning.config.schema import Config, ModelConfig


def of_model(model: ModelConfig) -> dict[str, str]:
    """Both towers, what they read and what they share."""
    vision, text = model.vision, model.text
    return {
        "image tower": f"{vision.timm or vision._target_}, {vision.image_size} pixels",
        "images in use": f"{vision.resize} side, {vision.interpolation}",
        "text tower": f"{text.config.get('model_type', text.huggingface)}, {text.context_length} tokens",
        "tokenizer": text.tokenizer.kind,
        "shared space": f"{model.embed_dim} numbers",
    }


def of_training(config: Config) -> dict[str, str]:
    """Data, loss, batch and precision."""
    return {
        "data": config.data.name,
        "loss": config.loss.name,
        "global batch": f"{config.compute.global_batch:,} pairs",
        "precision": config.compute.precision,
    }
