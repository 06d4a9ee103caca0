"""The named models of conf/model as configs, for the tables of parameters and FLOPs."""

from clip_lightning.config import compose
from clip_lightning.config.schema import LossConfig, ModelConfig

# `pair` is any two towers, `by_data` is replaced by another name, `auto` is read from model.pretrained.
_NOT_ONE_MODEL = ("auto", "by_data", "pair")


def names() -> list[str]:
    """All named models, in alphabetical order."""
    return sorted(path.stem for path in (compose.CONF / "model").glob("*.yaml") if path.stem not in _NOT_ONE_MODEL)


def load(name: str) -> tuple[ModelConfig, LossConfig]:
    """A named model and the loss that it is trained with.

    Raises:
        UserError: there is no such name.
    """
    config = compose.load("train", [f"model={name}", "data=scenes"], check=False)
    return config.model, config.loss
