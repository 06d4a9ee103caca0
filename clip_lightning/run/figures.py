"""The figures of a run: loss and zero-shot over samples, predictions on single images, held-out pairs."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from matplotlib.figure import Figure

from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.errors import DataError
from clip_lightning.evaluation.pair_examples import pair_examples
from clip_lightning.evaluation.predictions import Prediction, example_indices, predictions
from clip_lightning.evaluation.tasks import ZeroShotTask
from clip_lightning.plots.predictions import prediction_panels
from clip_lightning.plots.training import loss_curve, zero_shot_curves
from clip_lightning.records import Record, to_frame
from clip_lightning.tokenizer import Tokenizer
from clip_lightning.training.clip_module import ClipModule

IMAGES_PER_TASK, TASKS = 3, 8
PAIRS, PAIRS_SHOWN = 256, 6


def write_figures(
    folder: Path, records: Sequence[Record], shown: Sequence[Prediction], retrieved: Sequence[Prediction] = ()
) -> list[Path]:
    """Writes the figures that the records and predictions allow, as PNG; returns their paths.

    Args: shown, retrieved: of `examples`.
    """
    folder.mkdir(exist_ok=True)
    table = to_frame(records)
    drawn: dict[str, Figure] = {}
    if (table.what == "loss").any():
        drawn["loss"] = loss_curve(table)
    if (table.what == "acc1").any():
        drawn["zero_shot"] = zero_shot_curves(table)
    if shown:
        drawn["predictions"] = prediction_panels(shown)
    if retrieved:
        drawn["retrieval"] = prediction_panels(retrieved)
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths


def examples(
    module: ClipModule, tokenizer: Tokenizer, tasks: Sequence[ZeroShotTask], data: ContrastiveDataModule
) -> tuple[list[Prediction], list[Prediction]]:
    """Predictions on single images of the tasks, and held-out pairs. Must be called on every rank."""
    return _predictions(module, tokenizer, tasks, data.image_size), _pairs(module, data)


def _predictions(
    module: ClipModule, tokenizer: Tokenizer, tasks: Sequence[ZeroShotTask], image_size: int
) -> list[Prediction]:
    """Predictions on a few images of each task, the same images for every run.

    Of the first tasks only, and of those in which an image has one label, which has a name.
    """
    chosen = [task for task in tasks if task.labels.ndim == 1 and task.allowed is None][:TASKS]
    rows: list[Prediction] = []
    for task in chosen:
        indices = example_indices(task, IMAGES_PER_TASK)
        with suppress(DataError):  # an image that cannot be read, which the evaluation has reported
            rows += predictions(module.model, tokenizer, task, indices, module.device, image_size=image_size)
    return rows


def _pairs(module: ClipModule, data: ContrastiveDataModule) -> list[Prediction]:
    """Held-out pairs that the model retrieves best and worst among a fixed few."""
    if not data.num_validation:
        return []
    pairs = data.validation_batch(PAIRS)
    captions = data.validation_captions(pairs)
    return pair_examples(module.model, pairs, captions, module.device, num_each=PAIRS_SHOWN // 2)
