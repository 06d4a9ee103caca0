"""Starts a run: as a job where its cluster has a scheduler, otherwise in this process."""

from collections.abc import Sequence

from clip_lightning.config.schema import Config
from clip_lightning.slurm.submit import is_submitted, submit


def start(config: Config, argv: Sequence[str]) -> int:
    """Submits or trains; returns the exit code. What trains is imported only where this process trains.

    Raises: UserError for what the user can fix.
    """
    if is_submitted(config):
        return submit(config)
    from clip_lightning.run.train import train

    return train(config, argv)
