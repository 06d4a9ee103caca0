"""Zero-shot evaluation against CLIP_benchmark 1.6's own functions, on one model with the same random weights.

    python -m experiments.benchmarks.zeroshot --quick --json zeroshot.json

The model is open_clip's ViT-S-32-alt; theirs is open_clip's module, ours has that module's weights. Both sides run in
one process and in float32, and their results are compared before anything is measured: the classifier within 1e-6, and
the accuracies and recalls.

    classifier    from class names and templates to the classifier; ImageNet's 1,000 classes with 80 templates, scaled
                  down to 60 and 20 (200 and 40 without --quick): the ratio does not depend on how many there are, since
                  both sides' time is proportional to the prompts
    prompt_sets   four sets of templates on one set of images, which are in memory: theirs encodes the images four times
    retrieval     images with five captions each, in memory, to recall at 1, 5 and 10
    end_to_end    a folder of CLIP_benchmark's webdataset layout to the result: JPEGs near 500 x 375, 10 classes
    features      images a second of a whole evaluation (images kept in memory, as during training) as a share of the
                  bare forward pass of the image tower

CPU seconds of the process; ratios above 1 mean that ours is faster.
"""

import argparse
import io
import json
import math
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from clip_lightning.errors import run_command
from clip_lightning.evaluation.caption_retrieval import CaptionRetrievalEvaluator
from clip_lightning.evaluation.classifier import ClassifierBuilder
from clip_lightning.evaluation.inference import inference
from clip_lightning.evaluation.prompts import fill
from clip_lightning.evaluation.retrieval_tasks import RetrievalTask
from clip_lightning.evaluation.tasks import ZeroShotTask, folder_task
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
from clip_lightning.training.any_model import open_model
from experiments.benchmarks.alternation import Cases, Row, alternate, parser, run
from experiments.benchmarks.data import photographs

MODEL, SIZE, CPU = "ViT-S-32-alt", 224, torch.device("cpu")
BATCH = 64
NOUNS = open_clip.IMAGENET_CLASSNAMES
TEMPLATES = [template("{c}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]


class Sides:
    """Both models, with random weights that are the same."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.peer, _, self.transform = open_clip.create_model_and_transforms(MODEL, pretrained=None)
        self.peer.eval()
        self.peer_tokenizer = open_clip.get_tokenizer(MODEL)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            config = open_clip.get_model_config(MODEL)
            (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}), encoding="utf-8")
            weights = {name: value.contiguous() for name, value in self.peer.state_dict().items()}
            save_file(weights, folder / "open_clip_model.safetensors")
            opened = open_model(folder)
        self.model, self.tokenizer = opened.model, opened.tokenizer

    @cached_property
    def images(self) -> np.ndarray:
        """Photographs as both towers take them: uint8 [n, S, S, 3]."""
        resized = [Image.open(io.BytesIO(content)).resize((SIZE, SIZE)) for content in photographs(4 * BATCH, None, 90)]
        return np.stack([np.asarray(image) for image in resized])

    def normalised(self, num: int) -> Tensor:
        """The same for theirs, whose tower does not normalise."""
        mean, std = (
            torch.tensor(of)[:, None, None] for of in (self.peer.visual.image_mean, self.peer.visual.image_std)
        )
        return (torch.from_numpy(self.images[:num]).permute(0, 3, 1, 2).float() / 255 - mean) / std

    def task(self, num: int, num_classes: int, templates: Sequence[str], **changes: Any) -> ZeroShotTask:
        """Images in memory with classes in turn."""
        labels = np.arange(num) % num_classes
        task = ZeroShotTask("photographs", NOUNS[:num_classes], templates, labels, lambda k: self.images[k])
        return replace(task, **changes)


class Labelled(torch.utils.data.TensorDataset):
    """Images and labels with `classes`, as CLIP_benchmark reads them from its data sets."""

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        super().__init__(images, labels)
        self.classes = classes


def accuracy(output: Tensor, target: Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """Theirs, but for `float()` of an array, which NumPy 2.4 refuses."""
    correct = output.topk(max(topk), 1, True, True)[1].t().eq(target.view(1, -1))
    return [correct[:k].reshape(-1).float().sum().item() / len(target) for k in topk]


def classifier(settings: argparse.Namespace) -> Iterator[Row]:
    """From class names and templates to a classifier, tokens included."""
    sides = Sides()
    num_classes, num_templates, rounds = (60, 20, 3) if settings.quick else (200, 40, 5)
    names, templates = NOUNS[:num_classes], TEMPLATES[:num_templates]

    def ours() -> Tensor:
        builder = ClassifierBuilder()
        prompts = builder.add("names", names, templates)
        with inference(sides.model, CPU):
            return builder.build(sides.model, sides.tokenizer, CPU)[prompts].weights

    def theirs() -> Tensor:
        built = zeroshot_classification.zero_shot_classifier(
            sides.peer, sides.peer_tokenizer, names, templates, "cpu", amp=False
        )
        return built.T

    torch.testing.assert_close(ours(), theirs(), atol=1e-6, rtol=0)
    num = num_classes * num_templates
    yield alternate(
        "classifier", lambda: len(ours()) * num_templates, lambda: len(theirs()) * num_templates, rounds=rounds,
        note=f"{num_classes} classes x {num_templates} templates = {num:,} prompts a round",
    )._replace(unit="prompts/s")  # fmt: skip


def prompt_sets(settings: argparse.Namespace) -> Iterator[Row]:
    """Four prompt sets on the same images."""
    sides = Sides()
    num, num_classes, rounds = (BATCH, 10, 3) if settings.quick else (BATCH * 4, 20, 5)
    sets = {"contextless": ["{c}"], "single": TEMPLATES[1:2], "seven": TEMPLATES[:7]}
    task = sides.task(num, num_classes, TEMPLATES[:20], prompt_sets=sets)
    images = sides.normalised(num)
    loader = DataLoader(Labelled(images, torch.from_numpy(task.labels), task.classnames), batch_size=BATCH)

    def ours() -> list[float]:
        evaluator = ZeroShotEvaluator(task, SIZE, batch=BATCH, prompt_sets=True)
        return [r.value for r in evaluator.run(sides.model, sides.tokenizer, CPU) if r.what == "acc1"]

    def theirs() -> list[float]:
        return [
            zeroshot_classification.evaluate(
                sides.peer, loader, sides.peer_tokenizer, task.classnames, list(templates), "cpu", amp=False
            )["acc1"]
            for templates in (task.templates, *sets.values())
        ]

    _same(ours(), theirs(), num)
    yield alternate(
        "prompt_sets", lambda: num * len(ours()), lambda: num * len(theirs()), rounds=rounds,
        note=f"{num} images, {num_classes} classes, sets of 20, 1, 1 and 7 templates; images x sets",
    )  # fmt: skip


def retrieval(settings: argparse.Namespace) -> Iterator[Row]:
    """Images with five captions each, in both directions."""
    sides = Sides()
    num, rounds = (BATCH, 2) if settings.quick else (BATCH * 4, 5)
    captions = [[fill(TEMPLATES[j], NOUNS[5 * k + j]) for j in range(5)] for k in range(num)]
    task = RetrievalTask("photographs", captions, lambda k: sides.images[k])
    pairs = list(zip(sides.normalised(num), captions, strict=True))
    depths = [1, 5, 10]

    def ours() -> list[float]:
        records = CaptionRetrievalEvaluator(task, SIZE, batch=BATCH).run(sides.model, sides.tokenizer, CPU)
        found = {record.what: record.value for record in records}
        return [found[f"{way}_recall_at_{k}"] for way in ("text_to_image", "image_to_text") for k in depths]

    def theirs() -> list[float]:
        loader = DataLoader(pairs, batch_size=BATCH, collate_fn=image_captions_collate_fn)  # type: ignore[arg-type]
        found = zeroshot_retrieval.evaluate(
            sides.peer, loader, sides.peer_tokenizer, "cpu", amp=False, recall_k_list=depths
        )
        return [found[f"{way}_retrieval_recall@{k}"] for way in ("image", "text") for k in depths]

    _same(ours(), theirs(), 5 * num)
    yield alternate(
        "retrieval", lambda: len(ours()) and num, lambda: len(theirs()) and num, rounds=rounds,
        note=f"{num} images with 5 captions each",
    )  # fmt: skip


def end_to_end(settings: argparse.Namespace) -> Iterator[Row]:
    """From a folder of tars to the result."""
    sides = Sides()
    num, rounds = (BATCH, 2) if settings.quick else (BATCH * 12, 5)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "wds_photographs"
        write_folder(folder, photographs(num, None, 90), num_classes=10, templates=TEMPLATES[:18])

        def ours() -> list[float]:
            evaluator = ZeroShotEvaluator(folder_task(folder), SIZE, batch=BATCH)
            return [record.value for record in evaluator.run(sides.model, sides.tokenizer, CPU)[:1]]

        def theirs() -> list[float]:
            dataset = build_wds_dataset("photographs", sides.transform, "test", str(folder))
            loader = DataLoader(dataset.batched(BATCH), batch_size=None, num_workers=0)
            names, templates = dataset.classes, dataset.templates
            found = zeroshot_classification.evaluate(
                sides.peer, loader, sides.peer_tokenizer, names, templates, "cpu", amp=False
            )
            return [found["acc1"]]

        ours(), theirs()  # pixels of the two resizes differ by up to 1 of 255, and random weights amplify it
        yield alternate(
            "end_to_end", lambda: len(ours()) and num, lambda: len(theirs()) and num, rounds=rounds,
            note=f"{num} JPEGs near 500 x 375, 10 classes, 18 templates (as CIFAR-10's)",
        )  # fmt: skip


def features(settings: argparse.Namespace) -> Iterator[Row]:
    """An evaluation against the image tower alone."""
    sides = Sides()
    num, rounds = (BATCH * 2, 3) if settings.quick else (BATCH * 4, 9)
    evaluator = ZeroShotEvaluator(sides.task(num, 10, TEMPLATES[:18]), SIZE, batch=BATCH)
    batches = torch.from_numpy(sides.images[:num]).permute(0, 3, 1, 2).contiguous().split(BATCH)

    def ours() -> int:
        return evaluator.run(sides.model, sides.tokenizer, CPU)[0].n or 0

    def bare() -> int:
        with inference(sides.model, CPU):
            return sum(len(sides.model.encode_image(images)) for images in batches)

    yield alternate("features", ours, bare, rounds=rounds, note=f"{num} images; theirs is the bare forward pass")


def write_folder(folder: Path, images: Sequence[bytes], num_classes: int, templates: Sequence[str]) -> None:
    """A test set in CLIP_benchmark's webdataset layout, in one tar."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(NOUNS[:num_classes]) + "\n", encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n", encoding="utf-8")
    (folder / "test" / "nshards.txt").write_text("1", encoding="utf-8")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, image in enumerate(images):
            for kind, content in (("jpg", image), ("cls", str(number % num_classes).encode())):
                member = tarfile.TarInfo(f"s{number:07d}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _same(ours: Iterable[float], theirs: Iterable[float], num: int) -> None:
    """Whether both sides have the same hits; a random model's logits are so near that one may differ by rounding."""
    for mine, other in zip(ours, theirs, strict=True):
        if not math.isclose(mine, other, abs_tol=1.01 / num):
            raise SystemExit(f"the two sides differ: {mine} and {other}")


CASES = {
    "classifier": classifier,
    "prompt_sets": prompt_sets,
    "retrieval": retrieval,
    "end_to_end": end_to_end,
    "features": features,
}


def main() -> None:
    """Prints and writes the ratios."""
    zeroshot_classification.accuracy = accuracy
    flags = parser("Zero-shot evaluation against CLIP_benchmark's own functions.")

    def cases(settings: argparse.Namespace) -> Cases:
        return {name: partial(case, settings) for name, case in CASES.items()}

    run("experiments.benchmarks.zeroshot", flags, cases)


if __name__ == "__main__":
    run_command(main)
