"""Trains a CLIP model: `python train.py key=value ...`; `python train.py --help` shows what can be set."""

from collections.abc import Sequence

from clip_lightning.config import compose
from clip_lightning.config.schema import Config


def task(config: Config, arguments: Sequence[str]) -> int:
    """Trains; torch is imported only here, when the config is known to be right."""
    from clip_lightning.run.train import train

    return train(config, arguments)


if __name__ == "__main__":
    compose.main("train", task)
