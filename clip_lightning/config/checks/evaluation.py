"""What an evaluation measures and where it looks for it. Imports no torch."""

from collections.abc import Iterator
from pathlib import Path

from clip_lightning.config import duration
from clip_lightning.config.schema import Config, EvaluateConfig
from clip_lightning.errors import UserError


def problems(config: Config | EvaluateConfig) -> Iterator[str]:
    """Folders that are not there, and settings without effect."""
    evaluation = config.eval
    for folder in evaluation.folders:
        if not Path(folder).expanduser().is_dir():
            yield f"eval.folders: {folder} does not exist; name folders in CLIP_benchmark's layout"
    if evaluation.root is not None and not Path(evaluation.root).expanduser().is_dir():
        yield f"eval.root={evaluation.root} does not exist; name the folder in which the data sets are"
    if isinstance(config, EvaluateConfig) and evaluation.max_share:
        yield f"eval.max_share={evaluation.max_share:g} has no effect on evaluate.py; leave it out"
    elif evaluation.max_share and _is_never(evaluation.every):
        yield (
            f"eval.max_share={evaluation.max_share:g} has no effect with eval.every={evaluation.every!r}, which "
            "evaluates at the end alone; leave it out"
        )


def _is_never(text: str) -> bool:
    try:
        return duration.parse(text).amount == 0
    except UserError:  # reported as a wrong duration
        return False
