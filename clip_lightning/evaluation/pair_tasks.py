"""Tasks of images and captions by name: retrieval (`retrieval_tasks`) and compositional ones (`compositional`)."""

from pathlib import Path

from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.caption_retrieval import CaptionRetrievalEvaluator
from clip_lightning.evaluation.compositional import (
    SUGAR_CREPE,
    CompositionalEvaluator,
    CompositionalTask,
    build_compositional,
)
from clip_lightning.evaluation.retrieval_tasks import RetrievalTask, build_retrieval, is_retrieval

PairTask = RetrievalTask | CompositionalTask
_COMPOSITIONAL = ("sugar_crepe", *(f"sugar_crepe/{name}" for name in SUGAR_CREPE), "winoground")


def is_pair_task(name: str) -> bool:
    """Whether this names a task of images and captions, or is the path of captioned data."""
    return name in _COMPOSITIONAL or is_retrieval(name) or ("/" in name and Path(name).expanduser().exists())


def build_pair_task(name: str, root: str | Path | None) -> PairTask:
    """The task, from a folder of data sets. Raises: UserError, DataError where it cannot be built."""
    return build_compositional(name, root) if name in _COMPOSITIONAL else build_retrieval(name, root)


def pair_evaluator(
    task: PairTask, image_size: int, *, batch: int = 256, precision: str = "fp32", budget: MemoryBudget | None = None
) -> CaptionRetrievalEvaluator | CompositionalEvaluator:
    """The evaluator of a task; arguments as of `ZeroShotEvaluator`."""
    if isinstance(task, RetrievalTask):
        return CaptionRetrievalEvaluator(task, image_size, batch=batch, precision=precision, budget=budget)
    return CompositionalEvaluator(task, image_size, batch=batch, precision=precision, budget=budget)
