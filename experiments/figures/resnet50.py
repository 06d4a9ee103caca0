"""Scores of an ImageNet ResNet-50 from a file of weights, as the directory of a run: the baseline of Figures 5, 13, 14.

    python -m experiments.figures.resnet50 resnet50-0676ba61.pth --folders DIR ... --out runs/resnet50
    python -m experiments.figures.fig05_probe RUN runs/resnet50

The weights are torchvision's or timm's (`.pth` or `.safetensors`, whose parameters have the same names). For every data
set with labelled images a linear probe on the 2,048 pooled features is fitted as for CLIP (appendix A.3 of Radford et
al. 2021); where all classes are ImageNet's, its own classifier, restricted to these classes, is tested as well
(`supervised_acc1`). The paper used He et al.'s original weights; torchvision's V1 weights differ from them a little,
its V2 weights and timm's newer ones a lot.
"""

import argparse
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_lightning.errors import UserError, run_command

if TYPE_CHECKING:
    import torch

    from clip_lightning.evaluation.labelled import LabelledImages
    from clip_lightning.evaluation.tasks import ZeroShotTask
    from clip_lightning.records import Record

# torchvision's evaluation transform: short side to 256, centre of 224 cut out, ImageNet's mean and standard deviation.
RESIZED, CROPPED = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_CLASSES = 1000


def main(words: Sequence[str] | None = None) -> int:
    """Measures, prints and records the scores; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.figures.resnet50", description="Scores of an ImageNet ResNet-50."
    )
    parser.add_argument("weights", type=Path, help="file of torchvision's or timm's resnet50, .pth or .safetensors")
    parser.add_argument("--tasks", nargs="+", default=[], help="registered tasks")
    parser.add_argument("--folders", nargs="+", default=[], metavar="DIR", help="data sets in CLIP_benchmark's layout")
    parser.add_argument("--root", metavar="DIR", help="folder of the suite's data sets")
    parser.add_argument("--batch", type=int, default=64, help="images per forward (default: 64)")
    parser.add_argument("--images", type=int, default=8000, help="labelled scenes (default: 8,000)")
    parser.add_argument("--out", type=Path, default=Path("runs/resnet50"), help="folder (default: runs/resnet50)")
    arguments = parser.parse_args(words)
    if not arguments.tasks and not arguments.folders:
        raise UserError("there is nothing to measure; name data sets with --folders DIR or --tasks.")
    if wrong := [name for name in ("batch", "images") if getattr(arguments, name) < 1]:
        raise UserError(f"--{wrong[0]}={getattr(arguments, wrong[0])} must be at least 1.")
    from clip_lightning.evaluation.tasks import build_tasks
    from clip_lightning.records import RecordWriter

    model = load_resnet50(arguments.weights)
    tasks = build_tasks(arguments.tasks, arguments.folders, arguments.root)
    arguments.out.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"run": arguments.out.resolve().name, "model": "resnet50", "data": "imagenet"}
    with closing(RecordWriter(arguments.out / "metrics.jsonl", **about, samples_seen=0)) as writer:
        for task in tasks:
            found = _scores(model, task, arguments)
            if not found:
                print(f"{task.name}  no labelled images, and classes that are not ImageNet's: not measured", flush=True)
            for record in writer.write(found):
                print(f"{record.task}  {record.what}  {100 * record.value:.1f} %", flush=True)
    return 0


def load_resnet50(path: Path) -> "torch.nn.Module":
    """The network with the weights of a file. Raises UserError where these are not a ResNet-50's."""
    import pickle

    import timm
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path}: the weights cannot be read ({str(error).splitlines()[0]}); name torchvision's or timm's file."
        ) from error
    if isinstance(state, dict):
        state = next((state[name] for name in ("state_dict", "model") if isinstance(state.get(name), dict)), state)
    model: torch.nn.Module = timm.create_model("resnet50", pretrained=False, num_classes=NUM_CLASSES)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not hold the weights of a ResNet-50 with {NUM_CLASSES:,} classes "
            f"({' '.join(str(error).split())[:160]}); name torchvision's or timm's file."
        ) from error
    return model.eval()


def _scores(model: "torch.nn.Module", task: "ZeroShotTask", arguments: argparse.Namespace) -> "list[Record]":
    """The probe's record where the task has labelled images, and the classifier's where its classes are ImageNet's."""
    from clip_lightning.evaluation import probe
    from experiments.figures.measure import hits_record, labelled_images

    columns = imagenet_columns(task)
    labelled: LabelledImages | None = None
    with suppress(UserError):  # without labelled images there is no probe
        labelled = labelled_images(task, arguments.folders, arguments.images)
    if labelled is None and columns is None:
        return []
    features, kept = pooled(model, task, arguments.batch)
    test = probe.Labelled(features, task.labels[kept])
    found = []
    if labelled is not None:
        values, numbers = pooled(model, labelled, arguments.batch)
        train, validation = probe.hold_out(probe.Labelled(values, labelled.labels[numbers]))
        fitted = probe.linear_probe(train, validation, test)
        found.append(probe.record([fitted], test.labels, len(task.classnames), "acc1", task.name, task.split))
    if columns is not None:
        found.append(hits_record("supervised_acc1", classify(model, features, columns) == test.labels, task))
    return found


def pooled(model: Any, images: "LabelledImages | ZeroShotTask", batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features, float32 [n, 2048], and the numbers of the images that can be read, int64 [n]."""
    import torch

    from clip_lightning.data.images.decode import decode_eval
    from clip_lightning.data.images.resize import Resize
    from clip_lightning.evaluation.encode import ImageReader
    from clip_lightning.evaluation.inference import inference

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    edge = (RESIZED - CROPPED) // 2
    inside = slice(edge, edge + CROPPED)

    def image(k: int) -> torch.Tensor:
        return decode_eval(images.read(k), RESIZED, resize=Resize("shortest", "bilinear"))[:, inside, inside]

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model.forward_head(model.forward_features((pixels / 255 - mean) / std), pre_logits=True)
        return found

    device = torch.device("cpu")
    with inference(model, device):
        values, kept = ImageReader(len(images.labels), image, CROPPED, batch).encode(encode, device)
    return values.numpy(), kept.numpy()


def imagenet_columns(task: "ZeroShotTask") -> list[list[int]] | None:
    """The classes of ImageNet that each class of the task is, by name; None where one is not ImageNet's.

    Two names of ImageNet are those of two classes each; where all 1,000 are there, the order decides.
    """
    from clip_lightning.evaluation.suite.names import imagenet_names

    if task.labels.ndim > 1 or task.groups is not None or task.allowed is not None:
        return None
    names = imagenet_names().classnames
    if list(task.classnames) == names:
        return [[k] for k in range(len(names))]
    columns = [[k for k, known in enumerate(names) if known == name] for name in task.classnames]
    return columns if all(columns) else None


def classify(model: Any, features: np.ndarray, columns: list[list[int]]) -> np.ndarray:
    """The most probable class of the task by the network's own classifier, int64 [n]; the best of several columns."""
    import torch

    with torch.no_grad():
        logits = model.fc(torch.from_numpy(features))
        return torch.stack([logits[:, chosen].amax(1) for chosen in columns], dim=1).argmax(1).numpy()


if __name__ == "__main__":
    run_command(main)
