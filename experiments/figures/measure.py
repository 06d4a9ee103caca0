"""Measures what some figures need beside a run's zero-shot scores, and appends it to the run's evaluation.jsonl.

    python -m experiments.figures.measure RUN --prompts                    bare class names: Figure 4
    python -m experiments.figures.measure RUN --probe --shots 1 2 4 8 16   linear probes: Figures 5 to 8, 10, 11, 14
    python -m experiments.figures.measure RUN --supervised --tasks shape   its tower trained on labels: Figure 13

Labelled images: of a folder in CLIP_benchmark's layout its `train/` tars; of the tasks `shape` and `color` and their
shifted sets the training scenes with a single shape. The probe is the paper's (appendix A.3): logistic regression by
L-BFGS on the features before the projection, its regularisation by a sweep on a fifth of the labelled images
(`clip_lightning.evaluation.probe`).
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clip_lightning.errors import UserError, run_command

if TYPE_CHECKING:
    from clip_lightning.config.schema import Config
    from clip_lightning.evaluation.labelled import LabelledImages
    from clip_lightning.evaluation.tasks import ZeroShotTask
    from clip_lightning.model.clip import CLIP
    from clip_lightning.records import Record
    from clip_lightning.tokenizer import Tokenizer

CONTEXTLESS = "contextless"


def main(words: Sequence[str] | None = None) -> int:
    """Measures and prints the records; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.figures.measure", description="Records for figures.")
    parser.add_argument("runs", nargs="+", type=Path, help="directories of runs")
    parser.add_argument("--prompts", action="store_true", help="zero-shot with bare class names")
    parser.add_argument("--probe", action="store_true", help="linear probe on all labelled images")
    parser.add_argument("--shots", nargs="+", type=int, default=[], help="linear probes on so many images of a class")
    parser.add_argument("--supervised", action="store_true", help="train the image tower on labels, as long as the run")
    parser.add_argument("--tasks", nargs="+", help="registered tasks (default: the run's)")
    parser.add_argument("--folders", nargs="+", default=[], metavar="DIR", help="data sets in CLIP_benchmark's layout")
    parser.add_argument("--images", type=int, default=8000, help="labelled scenes (default: 8,000)")
    arguments = parser.parse_args(words)
    if not (arguments.prompts or arguments.probe or arguments.shots or arguments.supervised):
        raise UserError("there is nothing to measure; write --prompts, --probe, --shots K ... or --supervised.")
    if wrong := [k for k in [*arguments.shots, arguments.images] if k < 1]:
        raise UserError(f"--shots and --images count images and must be at least 1, not {wrong[0]}.")
    for run in arguments.runs:
        if not (run / "config.yaml").is_file():
            raise UserError(f"{run} is not the directory of a run: it has no config.yaml.")
        for record in _measure(run, arguments):
            print(f"{run.name}  {record.task}  {record.what}  {record.prompts}  {100 * record.value:.1f} %", flush=True)
    return 0


def _measure(run: Path, arguments: argparse.Namespace) -> "Iterator[Record]":
    """Measures a run, writes each record as it is made, and yields it."""
    import torch

    from clip_lightning.config import compose, identity
    from clip_lightning.evaluation.tasks import build_tasks
    from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
    from clip_lightning.records import RecordWriter
    from clip_lightning.tokenizer import load_tokenizer
    from clip_lightning.training.saved_model import config_of_saved, find_checkpoint, load_model, refuse_targets

    frozen = compose.read(run / "config.yaml")
    refuse_targets(frozen, [])
    config = config_of_saved(frozen, run)
    names = arguments.tasks if arguments.tasks or arguments.folders else config.eval.tasks
    tasks = build_tasks(names or [], arguments.folders or ([] if arguments.tasks else config.eval.folders))
    checkpoint = find_checkpoint(run, "last")
    model = load_model(config, checkpoint)
    context = {
        "run": run.resolve().name,
        "model": identity.model_name(frozen),
        "data": frozen.data.name,
        "science": identity.science_hash(frozen),
        "samples_seen": checkpoint.samples_seen,
    }
    with closing(RecordWriter(run / "evaluation.jsonl", **context)) as writer:
        if arguments.prompts:
            tokenizer: Tokenizer = load_tokenizer(config.model.text, run / "tokenizer")
            for task in tasks:
                bare = replace(task, templates=["{c}"], prompts=CONTEXTLESS)
                evaluator = ZeroShotEvaluator(bare, config.model.vision.image_size, batch=config.eval.batch)
                yield from writer.write(evaluator.run(model, tokenizer, torch.device("cpu")))
        if arguments.probe or arguments.shots:
            for task in tasks:
                labelled = labelled_images(task, arguments.folders or config.eval.folders, arguments.images)
                yield from writer.write(_probes(model, config, task, labelled, arguments))
        if arguments.supervised:
            labelled = labelled_images(tasks[0], [], arguments.images)
            yield from writer.write(_supervised(config, tasks, labelled, checkpoint.samples_seen))


def labelled_images(task: "ZeroShotTask", folders: Sequence[str], num_scenes: int) -> "LabelledImages":
    """The labelled images of a task. Raises UserError where it has none."""
    from clip_lightning.evaluation import labelled

    if task.name in labelled.DRAWN:
        return labelled.labelled_images(task.name, num_scenes=num_scenes)
    for folder in map(Path, folders):
        if folder.resolve().name == task.name and (folder / "train" / "nshards.txt").is_file():
            return labelled.labelled_images(str(folder))
    raise UserError(
        f"{task.name} has no labelled images to train on: they are those of shape and color, or tars in the folder "
        "`train` of a data set in CLIP_benchmark's layout (--folders); leave the task out with --tasks."
    )


def _probes(
    model: "CLIP", config: "Config", task: "ZeroShotTask", labelled: "LabelledImages", arguments: argparse.Namespace
) -> "list[Record]":
    import torch

    from clip_lightning.data.images.decode import Resize
    from clip_lightning.evaluation import probe
    from clip_lightning.evaluation.features import image_features

    vision = config.model.vision

    def features(images: "LabelledImages | ZeroShotTask") -> probe.Labelled:
        values, kept = image_features(
            model,
            images,
            len(images.labels),
            torch.device("cpu"),
            image_size=vision.image_size,
            resize=Resize(vision.resize, vision.interpolation),
            batch=config.eval.batch,
        )
        return probe.Labelled(values, images.labels[kept])

    train, validation = probe.hold_out(features(labelled))
    test, classes = features(task), len(task.classnames)
    probes = [[probe.linear_probe(train, validation, test)]] if arguments.probe else []
    probes += [probe.few_shot(train, validation, test, shots, seeds=[0]) for shots in arguments.shots]
    return [probe.record(found, test.labels, classes, "acc1", task.name, task.split) for found in probes]


def _supervised(
    config: "Config", tasks: "Sequence[ZeroShotTask]", labelled: "LabelledImages", samples_seen: int
) -> "list[Record]":
    """Trains the run's image tower from scratch with a linear classifier on labels, and tests it on every task."""
    import torch
    from torch.nn.functional import cross_entropy

    from clip_lightning.model.vision import VisionTower

    if different := [task.name for task in tasks if task.classnames != tasks[0].classnames]:
        raise UserError(
            f"--supervised trains one classifier, and {different[0]} has other classes than {tasks[0].name}."
        )
    size, batch = config.model.vision.image_size, config.compute.global_batch
    images = torch.stack([labelled.image(k, size) for k in range(len(labelled.labels))])
    labels = torch.as_tensor(labelled.labels)
    steps = max(10, samples_seen // batch)
    with torch.random.fork_rng([]):
        torch.manual_seed(config.compute.seed)
        model = torch.nn.Sequential(
            VisionTower(config.model.vision, config.model.embed_dim),
            torch.nn.Linear(config.model.embed_dim, len(tasks[0].classnames)),
        )
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.optimizer.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.compute.learning_rate, steps, pct_start=0.05)
        for _ in range(steps):
            chosen = torch.randint(len(labels), (batch,))
            loss = cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        records = []
        with torch.no_grad():
            for task in tasks:
                tested = torch.stack([task.image(k, size) for k in range(task.num_samples)])
                found = torch.cat([model(part).argmax(1) for part in tested.split(config.eval.batch)]).numpy()
                records.append(hits_record("supervised_acc1", found == task.labels, task))
    return records


def hits_record(what: str, hits: np.ndarray, task: "ZeroShotTask") -> "Record":
    """A share of hits, bool [n], as a record with its interval."""
    from clip_lightning.evaluation.metrics import wilson
    from clip_lightning.records import Record

    low, high = wilson(float(hits.sum()), len(hits))
    return Record(
        what=what, value=float(hits.mean()), low=low, high=high, n=len(hits), chance=1 / len(task.classnames),
        task=task.name, split=task.split,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
