"""Zero-shot classification: images against the classifiers made of prompts.

The features of an image are computed once for all tasks and prompt sets on the same images. Images are decoded ahead of
the model by a few threads, and kept between runs where they fit, so that an evaluation during training costs the
towers' forward passes alone. Each image counts exactly once, whatever the ranks; one that cannot be read is left out,
counted, and named in the records.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from clip_lightning.data.layouts.layout import BadSample
from clip_lightning.distributed import rank_and_world
from clip_lightning.errors import DataError
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.classifier import ClassifierBuilder, PromptSet
from clip_lightning.evaluation.encode import ImageReader
from clip_lightning.evaluation.inference import best_allowed, inference, refuse_broken
from clip_lightning.evaluation.metrics import (
    METRICS,
    Calibration,
    ClassAccuracy,
    ImageRows,
    Measured,
    Scored,
    SetAccuracy,
    TaskMetric,
)
from clip_lightning.evaluation.prediction_table import prediction_table
from clip_lightning.evaluation.tasks import ZeroShotTask
from clip_lightning.model.clip import CLIP
from clip_lightning.records import Record
from clip_lightning.tokenizer import Tokenizer

_FEWEST = 32  # images of a batch, at least, where there are so many
NEEDS_GROUPS = ("pm", "worst_group_acc1", "worst_group_acc5")
NEEDS_SETS = ("map", "map11", "jaccard")  # labels bool [n, C]


@dataclass(frozen=True)
class _Case:
    """A task with one set of templates; `variant` is empty for the task's own."""

    task: ZeroShotTask
    prompts: PromptSet
    variant: str


class ZeroShotEvaluator:
    """Measures tasks on the same images.

    Attributes:
        predictions: after a run with `keep_predictions`: a table per task and prompt set.
    """

    def __init__(
        self,
        tasks: ZeroShotTask | Sequence[ZeroShotTask],
        image_size: int,
        *,
        batch: int = 256,
        precision: str = "fp32",
        budget: MemoryBudget | None = None,
        classifiers: ClassifierBuilder | None = None,
        prompt_sets: bool = False,
        keep_predictions: bool = False,
    ) -> None:
        """Args.

        tasks: with the same images in the same order.
        image_size: pixels, square, of the model's input.
        batch: images (and prompts) per forward on a rank.
        precision: of the towers: fp32, bf16, fp16; logits are float32.
        budget: of memory, shared with other evaluators; decoded images are kept between runs where they fit.
        classifiers: shared with other evaluators, so that prompts of all of them are embedded in one pass.
        prompt_sets: whether the tasks' further prompt sets are measured as well.
        keep_predictions: whether a run keeps its prediction on every image.

        Raises DataError where tasks cannot be measured by their metric or do not have the same images.
        """
        self.tasks = [tasks] if isinstance(tasks, ZeroShotTask) else list(tasks)
        self.name = ", ".join(task.name for task in self.tasks)
        self.image_size, self.precision = image_size, precision
        self.classifiers = classifiers or ClassifierBuilder(batch)
        self.keep_predictions = keep_predictions
        self.predictions: list[pa.Table] = []
        _check(self.tasks)
        self.num_samples = self.tasks[0].num_samples
        # A small set has smaller batches, so that each of up to 16 ranks has images of its own.
        batch = min(batch, max(_FEWEST, -(-self.num_samples // 16)))
        self.images = ImageReader(self.num_samples, self._image, image_size, batch, budget or MemoryBudget())
        self._cases = [case for task in self.tasks for case in self._cases_of(task, prompt_sets)]

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        """Records of every task and prompt set, the same on every rank: for one label per image `acc1`, `acc5`,
        `mean_per_class`, the task's own metric if it is another, and `ece`; otherwise the task's own metric.

        Raises UserError when features are NaN or infinite, DataError when no image can be read.
        """
        metrics = [[metric.to(device) for metric in self._metrics_of(case.task)] for case in self._cases]
        allowed = [_on(device, case.task.allowed) for case in self._cases]
        with inference(model, device, self.precision):
            classifiers = self.classifiers.build(model, tokenizer, device)
            scale = model.current_logit_scale()
            features_ND, sample_N = self.images.encode(model.encode_image, device)
        refuse_broken(int((~features_ND.isfinite()).any(1).sum()), self.num_samples, f"{self.name}, images")
        unreadable = self.images.note(self.name, sample_N)
        # Whole batches are dealt to the ranks, so that a batch holds the same images whatever the number of ranks.
        rank, world = rank_and_world()
        row_N = torch.arange(len(sample_N), device=device)
        # First an empty one: a rank without images has metrics to synchronise all the same.
        for rows in (row_N[:0], *row_N.split(self.images.batch)[rank::world]):
            for case, own, wider in zip(self._cases, metrics, allowed, strict=True):
                logits_BC = classifiers[case.prompts].cosines(features_ND[rows])
                samples = sample_N[rows]
                _update(own, logits_BC, _labels(case.task, samples), samples, scale, wider)
        return self._records(metrics, len(sample_N), unreadable)

    def _image(self, sample: int) -> Tensor:
        """An image. Raises BadSample whatever the reason that it cannot be read."""
        try:
            return self.tasks[0].image(sample, self.image_size)
        except (DataError, OSError) as error:
            if isinstance(error.__cause__, BadSample):
                raise error.__cause__ from error
            raise BadSample("unreadable", " ".join(str(error).split())) from error

    def _cases_of(self, task: ZeroShotTask, prompt_sets: bool) -> list[_Case]:
        variants = [("", replace(task, prompt_sets={}))]
        for name, templates in task.prompt_sets.items() if prompt_sets else ():
            if name != task.prompts:
                variants.append((name, replace(task, templates=templates, prompts=name, prompt_sets={})))
        return [
            _Case(one, self.classifiers.add(one.name, one.classnames, one.templates), variant)
            for variant, one in variants
        ]

    def _metrics_of(self, task: ZeroShotTask) -> list[TaskMetric]:
        num_classes = len(task.classnames) if task.allowed is None else task.allowed.shape[1]
        own = METRICS[task.metric](num_classes, task.groups, task.group_names)
        found: list[TaskMetric] = [own]
        if task.labels.ndim == 1 and task.metric != "pm":
            further = [] if isinstance(own, ClassAccuracy) else [own]
            found = [ClassAccuracy(num_classes), *further, Calibration(num_classes)]
        if task.allowed is not None:
            found.append(SetAccuracy(len(task.classnames)))
        if self.keep_predictions and not any(isinstance(metric, ImageRows) for metric in found):
            found.append(ImageRows(num_classes))
        return found

    def _records(self, metrics: list[list[TaskMetric]], n: int, unreadable: str) -> list[Record]:
        records = []
        self.predictions = []
        for case, own in zip(self._cases, metrics, strict=True):
            common = self._common(case, n, unreadable)
            for metric in own:
                if type(metric) is not ImageRows:
                    records += _records_of(metric, common)
            rows = next((metric for metric in own if isinstance(metric, ImageRows)), None)
            if self.keep_predictions and rows is not None:
                self.predictions.append(prediction_table(case.task, rows.gathered()))
        return records

    def _common(self, case: _Case, n: int, unreadable: str) -> Record:
        """What all records of a case have; its value is not set yet."""
        task = case.task
        notes = [task.stand_in, unreadable]
        if task.num_expected is not None and n < task.num_expected:
            notes.append(f"{n:,} images were evaluated, and the set is known to have {task.num_expected:,}.")
        return Record(
            what="",
            value=0.0,
            n=n,
            task=task.name,
            split=task.split,
            variant=case.variant,
            prompts=task.prompts,
            prompts_hash=task.prompts_hash,
            precision=self.precision,
            note=" ".join(note.rstrip(".") + "." for note in notes if note),
            names_from=task.names_from,
            transform=f"{self.image_size} {task.resize.mode} {task.resize.interpolation}",
        )


def _check(tasks: Sequence[ZeroShotTask]) -> None:
    """Raises DataError where the tasks cannot be measured together or by their metrics."""
    problems = []
    for task in tasks:
        if task.num_samples != tasks[0].num_samples:
            problems.append(
                f"tasks {tasks[0].name} and {task.name} are to share images, and have {tasks[0].num_samples:,} and "
                f"{task.num_samples:,} of them; give them different images_id."
            )
        if task.metric not in METRICS:
            problems.append(f"task {task.name}: there is no metric {task.metric}; it is one of {', '.join(METRICS)}.")
        elif task.metric in NEEDS_GROUPS and task.groups is None:
            problems.append(f"task {task.name}: its metric {task.metric} needs a group for each image (groups).")
        elif task.metric in NEEDS_SETS and task.labels.ndim != 2:
            problems.append(f"task {task.name}: its metric {task.metric} needs labels bool [n, classes].")
        elif task.metric not in (*NEEDS_SETS, "pm") and task.labels.ndim != 1:
            problems.append(f"task {task.name}: its metric {task.metric} needs one label per image.")
        elif task.metric == "roc_auc" and len(task.classnames) != 2:
            problems.append(f"task {task.name}: roc_auc is of two classes, and it has {len(task.classnames)}.")
        if task.groups is not None and len(task.groups) != task.num_samples:
            problems.append(f"task {task.name} has {len(task.groups):,} groups for {task.num_samples:,} images.")
    if problems:
        raise DataError(*problems)


def _update(
    metrics: list[TaskMetric], logits: Tensor, labels: Tensor, index: Tensor, scale: Tensor, allowed: Tensor | None
) -> None:
    """Adds a batch to a case's metrics; `logits` are those of all classes of the classifier."""
    scored = Scored(logits, labels, index, scale)
    if allowed is not None:
        by_class = labels.float() @ allowed.T.float() > 0 if labels.ndim == 2 else allowed.T[labels]
        wider = Scored(logits, by_class, index, scale)
        scored = Scored(best_allowed(logits, allowed), labels, index, scale)
    for metric in metrics:
        metric.update(wider if isinstance(metric, SetAccuracy) else scored)


def _records_of(metric: TaskMetric, common: Record) -> list[Record]:
    """One record for each value of a metric."""
    recalls: list[float | None] = []
    measured: dict[str, Measured]
    if isinstance(metric, ClassAccuracy):
        counts = metric.synced()
        assert counts.num_images == common.n
        measured, recalls = counts.accuracies(), counts.recalls
    else:
        measured = metric.measured()
    return [
        replace(
            common,
            what=name.partition("@")[0],
            value=found.value,
            low=found.low,
            high=found.high,
            chance=found.chance,
            n=common.n if found.n is None else found.n,
            group=found.group,
            per_class=tuple(recalls) if name == "mean_per_class" else None,
        )
        for name, found in measured.items()
    ]


def _labels(task: ZeroShotTask, samples: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(task.labels)[samples.cpu().numpy()]).to(samples.device)


def _on(device: torch.device, array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(np.asarray(array, dtype=bool)).to(device)
