"""The evaluators of a run: one per zero-shot task, and one of its validation pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from clip_lightning.config.schema import Config
from clip_lightning.data.datamodule import Batch, ContrastiveDataModule
from clip_lightning.data.images.decode import Resize
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.retrieval import RetrievalEvaluator
from clip_lightning.evaluation.tasks import ZeroShotTask
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
from clip_lightning.training.zero_shot_callback import Evaluator


def build_evaluators(
    config: Config, tasks: Sequence[ZeroShotTask], data: ContrastiveDataModule | None
) -> list[Evaluator]:
    """One evaluator per task, and one of the validation pairs where there are any."""
    size, precision, budget = config.model.vision.image_size, config.compute.precision, MemoryBudget()
    resize = Resize(config.model.vision.resize, config.model.vision.interpolation)
    resized = [replace(task, resize=resize) for task in tasks]
    found: list[Evaluator] = [
        ZeroShotEvaluator(task, size, batch=config.eval.batch, precision=precision, budget=budget) for task in resized
    ]
    if data is not None and data.num_validation:
        pairs = _ValidationBatches(data)
        found.append(RetrievalEvaluator(pairs, batch=config.eval.batch, precision=precision, budget=budget))
    return found


class _ValidationBatches:
    """This rank's validation batches; the loader is made when the rank is known."""

    def __init__(self, data: ContrastiveDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.data.val_dataloader())
