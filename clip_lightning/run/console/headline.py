"""The first line of a run, printed before torch is imported."""

from collections.abc import Sequence
from importlib.metadata import version

from clip_lightning.config.schema import Config
from clip_lightning.reliability import provenance
from clip_lightning.reliability.run_paths import directory_of

WIDTH = 100


def headline(config: Config, argv: Sequence[str]) -> str:
    """Version, commit and name of the run."""
    head = f"clip_lightning {version('clip-lightning')}  {provenance.commit()}"
    run = f"run {directory_of(config, argv).name}"
    return f"{head}{' ' * max(2, WIDTH - len(head) - len(run))}{run}"
