"""Runs a task of the suite through an evaluator."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from clip_lightning.evaluation import metrics
from clip_lightning.evaluation.tasks import ZeroShotTask
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
from clip_lightning.records import Record

KNOWN = tuple(getattr(metrics, "METRICS", ("acc1", "mean_per_class")))


def sample(task: ZeroShotTask, number: int) -> ZeroShotTask:
    """Some images of a task, evenly over it; the first few groups where it has anchors."""
    places = np.unique(np.linspace(0, task.num_samples - 1, number).astype(int))
    if task.metric == "pm" and task.groups is not None:
        places = np.flatnonzero(task.groups < 4)
    groups = None if task.groups is None else task.groups[places]
    return replace(task, labels=task.labels[places], read=lambda k: task.read(int(places[k])), groups=groups)


def measured(task: ZeroShotTask, model: Any, tokenizer: Any) -> Record | None:
    """The record of the set's own metric; None where this checkout has no such metric."""
    if task.metric not in KNOWN:
        return None
    records = ZeroShotEvaluator(task, 8).run(model, tokenizer, torch.device("cpu"))
    return next(record for record in records if record.what == task.metric)
