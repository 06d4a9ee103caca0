"""The config of a run for use in a script or a notebook."""

from clip_lightning.config import compose
from clip_lightning.config.schema import Config


def load_config(*settings: str) -> Config:
    """The checked config of a training run, for use in a script or a notebook.

    Args:
        settings: as on the command line, like "model=tiny" or "compute.seed=1".

    Raises:
        UserError: all that is wrong, one sentence each.
    """
    config: Config = compose.load("train", settings)
    return config
