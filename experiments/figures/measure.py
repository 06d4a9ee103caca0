"""Measures what some figures need beside a run's zero-shot scores, and appends it to the run's evaluation.jsonl.

    python -m experiments.figures.measure RUN --prompts                    bare class names: Figure 4
    python -m experiments.figures.measure RUN --probe --shots 1 2 4 8 16   linear probes: Figures 5 to 8, 10, 11, 14
    python -m experiments.figures.measure RUN --supervised --tasks shape   its tower trained on labels: Figure 13

Labelled images: of a folder in CLIP_benchmark's layout its `train/` tars; of the tasks `shape` and `color` and their
shifted sets the training scenes with a single shape. The probe is the paper's (appendix A.3): logistic regression by
L-BFGS on the features before the projection, its regularisation by a sweep on a fifth of the labelled images.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_lightning.errors import UserError, run_command

if TYPE_CHECKING:
    from clip_lightning.config.schema import Config
    from clip_lightning.evaluation.tasks import TarImages, ZeroShotTask
    from clip_lightning.model.clip import CLIP
    from clip_lightning.records import Record
    from clip_lightning.tokenizer import Tokenizer

_GRID = np.logspace(-6, 6, 97)  # lambda, 8 a decade
_FIRST_STEP = 16  # grid points apart: 1e-6, 1e-4, ..., 1e6
_MAX_ITERATIONS = 1000
CONTEXTLESS = "contextless"


@dataclass(frozen=True)
class Labelled:
    """Labelled images: int64 labels [n], and image k as uint8 [3, size, size]."""

    labels: np.ndarray
    image: Callable[[int, int], Any]


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


def labelled_images(task: "ZeroShotTask", folders: Sequence[str], num_scenes: int) -> Labelled:
    """The labelled images of a task. Raises UserError where it has none."""
    from clip_lightning.data.images.decode import decode_eval
    from clip_lightning.data.scenes.scenes import Scenes
    from clip_lightning.data.scenes.shifted import REFERENCE, SHIFTED_TASKS, labelled_scenes
    from clip_lightning.evaluation.prompts import read_lines
    from clip_lightning.evaluation.tasks import TarImages

    part = REFERENCE if task.name in SHIFTED_TASKS else task.name
    if part in (REFERENCE, "color"):
        ids, labels = labelled_scenes(part, num_scenes)
        layout = Scenes()
        return Labelled(labels, lambda k, size: decode_eval(layout.read(ids[k]).image, size))
    for folder in map(Path, folders):
        announced = folder / "train" / "nshards.txt"
        if folder.resolve().name == task.name and announced.is_file():
            return _of_tars(TarImages([folder / "train" / f"{k}.tar" for k in range(int(read_lines(announced)[0]))]))
    raise UserError(
        f"{task.name} has no labelled images to train on: they are those of shape and color, or tars in the folder "
        "`train` of a data set in CLIP_benchmark's layout (--folders); leave the task out with --tasks."
    )


def _of_tars(images: "TarImages") -> Labelled:
    from clip_lightning.data.images.decode import decode_eval

    return Labelled(images.labels, lambda k, size: decode_eval(images.read(k), size))


def _features(model: "CLIP", image: Callable[[int], Any], num: int, batch: int) -> np.ndarray:
    """What the projection of the image tower reads, float32 [num, width]."""
    import torch

    from clip_lightning.evaluation.inference import inference

    with inference(model, torch.device("cpu")):
        parts = [
            model.vision.pooled(torch.stack([image(k) for k in range(start, min(num, start + batch))]))
            for start in range(0, num, batch)
        ]
    return torch.cat(parts).float().numpy()


def _probes(
    model: "CLIP", config: "Config", task: "ZeroShotTask", labelled: Labelled, arguments: argparse.Namespace
) -> "list[Record]":
    size, batch = config.model.vision.image_size, config.eval.batch
    train = _features(model, lambda k: labelled.image(k, size), len(labelled.labels), batch)
    test = _features(model, lambda k: task.image(k, size), task.num_samples, batch)
    order = np.random.default_rng(0).permutation(len(train))
    train, labels = train[order], labelled.labels[order]
    strength = sweep(train, labels)
    records = []
    if arguments.probe:
        hits = _fit(train, labels, strength).predict(test) == task.labels
        records += _records("linear_probe_acc1", hits, task)
    for shots in arguments.shots:
        few = np.concatenate([np.flatnonzero(labels == label)[:shots] for label in np.unique(labels)])
        hits = _fit(train[few], labels[few], strength).predict(test) == task.labels
        records += _records(f"few_shot_{shots}_acc1", hits, task)
    return records


def sweep(features: np.ndarray, labels: np.ndarray) -> float:
    """The regularisation lambda of the paper's search: every 16th of 97 points, then 8, 4, 2, 1 around the best.

    Args:
        features, labels: [n, D] and [n] in random order; the last fifth validates.
    """
    cut = len(labels) * 4 // 5
    scores: dict[int, float] = {}

    def score(k: int) -> float:
        if k not in scores:
            found = _fit(features[:cut], labels[:cut], float(_GRID[k]))
            scores[k] = float((found.predict(features[cut:]) == labels[cut:]).mean())
        return scores[k]

    best, step = max(range(0, len(_GRID), _FIRST_STEP), key=score), _FIRST_STEP
    while step > 1:
        step //= 2
        near = [k for k in (best - step, best, best + step) if 0 <= k < len(_GRID)]
        best = max(near, key=score)
    return float(_GRID[best])


def _fit(features: np.ndarray, labels: np.ndarray, strength: float) -> Any:
    """scikit-learn's logistic regression, whose C multiplies the summed loss."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at the ends of the sweep, as in the paper's
        return LogisticRegression(C=1 / strength, max_iter=_MAX_ITERATIONS).fit(features, labels)


def _supervised(
    config: "Config", tasks: "Sequence[ZeroShotTask]", labelled: Labelled, samples_seen: int
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
                records += _records("supervised_acc1", found == task.labels, task)
    return records


def _records(what: str, hits: np.ndarray, task: "ZeroShotTask") -> "list[Record]":
    from clip_lightning.evaluation.metrics import wilson
    from clip_lightning.records import Record

    low, high = wilson(float(hits.sum()), len(hits))
    chance = 1 / len(task.classnames)
    return [
        Record(
            what=what,
            value=float(hits.mean()),
            low=low,
            high=high,
            n=len(hits),
            chance=chance,
            task=task.name,
            split=task.split,
        )
    ]


if __name__ == "__main__":
    run_command(main)
