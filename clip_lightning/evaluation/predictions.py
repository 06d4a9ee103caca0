"""Predictions of a model on single images: the rows of a figure like Figure 21 of Radford et al. 2021."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clip_lightning.evaluation.classifier import ClassifierBuilder
from clip_lightning.evaluation.inference import inference, refuse_broken
from clip_lightning.evaluation.metrics import places
from clip_lightning.evaluation.prompts import fill
from clip_lightning.evaluation.tasks import ZeroShotTask
from clip_lightning.model.clip import CLIP
from clip_lightning.tokenizer import Tokenizer

NUM_SHOWN = 5


@dataclass(frozen=True)
class Prediction:
    """One image, its most probable classes, and the rank of the correct one.

    Attributes:
        image: uint8 [S, S, 3], as the model saw it.
        label: name of the correct class.
        rank: of the correct class, 1 the best; equal logits have the better rank.
        probability: of the correct class, 0..1.
        num_classes: how many the softmax went over.
        prompts: the first template filled with the most probable classes, the best first; at most five.
        probabilities: theirs.
        correct: index of the correct class in `prompts`, or None.
    """

    task: str
    image: np.ndarray
    label: str
    rank: int
    probability: float
    num_classes: int
    prompts: list[str]
    probabilities: list[float]
    correct: int | None


def example_indices(task: ZeroShotTask, num_images: int) -> list[int]:
    """Indices of images picked at random, no class twice while another has none.

    The same for every model, so that the pictures of runs compare.
    """
    shuffled = np.random.default_rng(0).permutation(task.num_samples)
    first_of_class = np.unique(task.labels[shuffled], return_index=True)[1]
    repeats = np.delete(np.arange(task.num_samples), first_of_class)
    return shuffled[np.concatenate([np.sort(first_of_class), repeats])][:num_images].tolist()


def predictions(
    model: CLIP,
    tokenizer: Tokenizer,
    task: ZeroShotTask,
    indices: Sequence[int],
    device: torch.device,
    *,
    image_size: int,
    precision: str = "fp32",
) -> list[Prediction]:
    """Predictions for the images `indices` of a task, by a softmax over its classes at the model's own logit scale.

    Must be called on every rank. Raises UserError when features are NaN or infinite.
    """
    images = torch.stack([task.image(k, image_size) for k in indices])
    labels = torch.as_tensor(task.labels)[list(indices)]
    with inference(model, device, precision):
        builder = ClassifierBuilder()
        prompts = builder.add(task.name, task.classnames, task.templates)
        classifier = builder.build(model, tokenizer, device)[prompts]
        features_BD = model.encode_image(images.to(device))
        logits_BC = (model.current_logit_scale() * classifier.cosines(features_BD)).cpu()
    refuse_broken(int((~logits_BC.isfinite()).any(1).sum()), len(images), f"{task.name}, images")
    ranks = places(logits_BC, labels)[0].tolist()
    best = logits_BC.argsort(dim=1, descending=True, stable=True)[:, :NUM_SHOWN].tolist()
    rows = []
    for image, label, rank, shown, probability in zip(
        images, labels.tolist(), ranks, best, logits_BC.softmax(1), strict=True
    ):
        rows.append(
            Prediction(
                task=task.name,
                image=image.permute(1, 2, 0).numpy(),
                label=task.classnames[label],
                rank=rank + 1,
                probability=probability[label].item(),
                num_classes=len(task.classnames),
                prompts=[fill(task.templates[0], task.classnames[k]) for k in shown],
                probabilities=probability[shown].tolist(),
                correct=shown.index(label) if label in shown else None,
            )
        )
    return rows
