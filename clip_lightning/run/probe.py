"""Linear and few-shot probes of a run's image tower, or of another library's (Radford et al. 2021, appendix A.3).

    python -m clip_lightning.run.probe RUN --train DIR --test DIR
    python -m clip_lightning.run.probe RUN --train DIR --test DIR --shots 1 2 4 8 16 --seeds 5

`evaluation/labelled.py` lists the layouts of labelled images. Scores are appended to `evaluation.jsonl` of the run, and
every fitted classifier is a line of `probes.jsonl`: its shots, seed, lambda, and the number of images it was fitted on.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from clip_lightning.errors import UserError, run_command

if TYPE_CHECKING:
    import numpy as np

    from clip_lightning.evaluation.labelled import LabelledImages
    from clip_lightning.evaluation.probe import Labelled, Probe
    from clip_lightning.records import Record, RecordWriter
    from clip_lightning.training.any_model import OpenedModel

_LARGEST_SHOTS = 1_000_000


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    found = argparse.ArgumentParser(prog="python -m clip_lightning.run.probe", description="Linear probes of features.")
    add = found.add_argument
    add("model", help="directory of a run, or what model.pretrained takes")
    add("--train", required=True, metavar="SOURCE", help="labelled images: a folder, parquet, or shape or color")
    add("--test", required=True, metavar="SOURCE", help="labelled images, or the name of a registered task")
    add("--root", metavar="DIR", help="folder of the suite's data sets, for --test NAME")
    add("--validation", metavar="SOURCE", help="chooses lambda (default: a fifth of each class's training images)")
    add("--shots", nargs="+", type=int, default=[], metavar="K", help="also probes on K training images of a class")
    add("--seeds", type=int, default=3, help="draws of the K images, each probed (default: 3)")
    add("--only-shots", action="store_true", help="no probe on all labels")
    add("--metric", default="acc1", help="acc1 or mean_per_class (default: acc1)")
    add("--task", help="name in the records (default: that of the test images' folder)")
    add("--features", type=Path, metavar="DIR", help="keep features there, and read them where nothing has changed")
    add("--zero-shot", type=float, metavar="X", help="zero-shot score, a fraction, that shots are matched to")
    add("--checkpoint", default="last", help="of a run: last, or the name or path of one")
    add("--weights", default="raw", choices=("raw", "ema"), help="of a run (default: raw)")
    add("--allow-target", nargs="+", default=[], metavar="PATH", help="import paths in the run's config to be called")
    add("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="of the tower (default: fp32)")
    add("--batch", type=int, default=256, help="images per forward (default: 256)")
    add("--scenes", type=int, default=8000, help="drawn scenes of --train shape (default: 8,000)")
    add("--out", type=Path, help="folder of the records (default: the run's directory)")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Probes, prints and records the scores; returns the exit code."""
    arguments = parser().parse_args(words)
    _check(arguments)
    from clip_lightning.evaluation import probe
    from clip_lightning.evaluation.labelled import labelled_images, matched_labels

    train_images = labelled_images(arguments.train, "train", arguments.scenes)
    test_images = _test_images(arguments.test, arguments.root)
    validation_images = labelled_images(arguments.validation, "validation") if arguments.validation else None
    test_labels = matched_labels(test_images, train_images.classnames)
    opened, folder = _open(arguments)
    train = _features(opened, train_images, train_images.labels, arguments)
    test = _features(opened, test_images, test_labels, arguments)
    if validation_images is None:
        train, validation = probe.hold_out(train)
    else:
        labels = matched_labels(validation_images, train_images.classnames)
        validation = _features(opened, validation_images, labels, arguments)
    probe.check(train, validation, test, arguments.metric)
    probe.refuse_shots(train.labels, arguments.shots)
    name, split = arguments.task or _name_of(arguments.test), test_images.split
    classes = len(train_images.classnames) or len(set(train.labels.tolist()))
    with closing(_writer(opened, folder, arguments)) as writer, (folder / "probes.jsonl").open("a") as lines:
        few: dict[int, float] = {}
        for shots in [*([] if arguments.only_shots else [None]), *sorted(set(arguments.shots))]:
            if shots is None:
                probes = [probe.linear_probe(train, validation, test, arguments.metric)]
            else:
                probes = probe.few_shot(train, validation, test, shots, range(arguments.seeds), arguments.metric)
            (record,) = writer.write([probe.record(probes, test.labels, classes, arguments.metric, name, split)])
            lines.writelines(f"{json.dumps(_row(one, test.labels, record))}\n" for one in probes)
            print(_line(record, probes), flush=True)
            if shots is not None:
                few[shots] = record.value
        _match(few, name, split, folder, writer, arguments)
    print(f"records      {folder / 'evaluation.jsonl'}, classifiers {folder / 'probes.jsonl'}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for arguments that make no sense, before torch is imported."""
    problems = [
        f"--{name} counts and must be at least 1, not {value}."
        for name in ("seeds", "batch", "scenes")
        if (value := getattr(arguments, name)) < 1
    ]
    problems += [
        f"--shots {number}: write numbers from 1 to {_LARGEST_SHOTS:,}."
        for number in arguments.shots
        if not 1 <= number <= _LARGEST_SHOTS
    ]
    if arguments.only_shots and not arguments.shots:
        problems.append("--only-shots leaves nothing to do without --shots K ...")
    if arguments.zero_shot is not None and not 0 <= arguments.zero_shot <= 1:
        problems.append(f"--zero-shot {arguments.zero_shot} is not a fraction; write 0.55 for 55 %.")
    if problems:
        raise UserError(*problems)


def _test_images(source: str, root: str | None) -> "LabelledImages":
    """The images of a registered task or of a folder."""
    from clip_lightning.evaluation.labelled import LabelledImages, labelled_images
    from clip_lightning.evaluation.suite.entry import entry_names
    from clip_lightning.evaluation.tasks import BUILDERS, build_task

    if source in (*BUILDERS, *entry_names()) and not Path(source).exists():
        task = build_task(source, root)
        if task.labels.ndim != 1:
            raise UserError(f"--test {source}: its images have several classes, and a probe needs one for each image.")
        return LabelledImages(task.name, task.labels, task.read, split=task.split)
    return labelled_images(source, "test")


def _name_of(source: str) -> str:
    """A data set's name: that of its folder, without the folder of the split."""
    from clip_lightning.evaluation.labelled import ROLES

    path = Path(source).expanduser().resolve()
    return path.parent.name if path.name in {name for names in ROLES.values() for name in names} else path.stem


def _open(arguments: argparse.Namespace) -> "tuple[OpenedModel, Path]":
    """The model, and the folder of the records."""
    import torch

    from clip_lightning.training.any_model import open_model

    opened = open_model(
        arguments.model,
        checkpoint=arguments.checkpoint,
        weights=arguments.weights,
        allow_target=arguments.allow_target,
    )
    folder = arguments.out or (opened.folder if opened.samples_seen is not None else None)
    if folder is None:
        raise UserError(f"{arguments.model} is not the directory of a run; name a folder for the records with --out.")
    folder.mkdir(parents=True, exist_ok=True)
    opened.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return opened, folder


def _features(
    opened: "OpenedModel", images: "LabelledImages", labels: "np.ndarray", arguments: argparse.Namespace
) -> "Labelled":
    """The features before the projection, with their labels; images that cannot be read are left out with a line."""
    from dataclasses import asdict

    from clip_lightning.data.images.decode import Resize
    from clip_lightning.evaluation.features import FeatureStore, image_features
    from clip_lightning.evaluation.probe import Labelled

    vision = opened.config.vision
    values, kept = image_features(
        opened.model,
        images,
        len(labels),
        next(opened.model.parameters()).device,
        image_size=vision.image_size,
        resize=Resize(vision.resize, vision.interpolation),
        batch=arguments.batch,
        precision=arguments.precision,
        store=FeatureStore(arguments.features) if arguments.features else None,
        architecture=json.dumps(asdict(vision), sort_keys=True, default=str),
    )
    if lost := len(labels) - len(kept):
        print(f"warning: {images.name}: {lost} of {len(labels)} images cannot be read and are left out", flush=True)
    return Labelled(values, labels[kept])


def _writer(opened: "OpenedModel", folder: Path, arguments: argparse.Namespace) -> "RecordWriter":
    from clip_lightning.config import identity
    from clip_lightning.records import RecordWriter
    from clip_lightning.reliability import provenance

    run = opened.run
    return RecordWriter(
        folder / "evaluation.jsonl",
        run=folder.resolve().name,
        model=identity.model_name(run) if run is not None else arguments.model,
        data=run.data.name if run is not None else "",
        science=identity.science_hash(run) if run is not None else "",
        samples_seen=opened.samples_seen or 0,
        weights="" if arguments.weights == "raw" else arguments.weights,
        precision=arguments.precision,
        versions=provenance.versions_line(provenance.versions()),
    )


def _row(probe: "Probe", labels: "np.ndarray", record: "Record") -> dict[str, object]:
    """A classifier as a line of probes.jsonl."""
    from clip_lightning.evaluation.probe import score

    metric = "mean_per_class" if record.what.endswith("mean_per_class") else "acc1"
    return {
        "what": record.what, "task": record.task, "metric": metric, "value": score(probe.correct, labels, metric),
        "shots": probe.shots, "seed": probe.seed, "lambda": probe.strength, "num_rows": probe.num_rows,
        "num_fits": probe.num_fits, "validation": probe.validation, "num_test": len(labels), "seconds": probe.seconds,
        "samples_seen": record.samples_seen, "weights": record.weights, "model": record.model,
    }  # fmt: skip


def _line(record: "Record", probes: "Sequence[Probe]") -> str:
    from clip_lightning.formatting import with_interval

    rows = f"{probes[0].num_rows:,} images fitted"
    draws = f", {len(probes)} draws" if len(probes) > 1 else ""
    strengths = ", ".join(f"{value:.3g}" for value in dict.fromkeys(probe.strength for probe in probes))
    shown = with_interval(record.value, record.low, record.high)
    return f"{record.what:28}  {shown}  n={record.n:,}  {rows}{draws}  lambda {strengths}"


def _match(
    few: dict[int, float],
    name: str,
    split: str,
    folder: Path,
    writer: "RecordWriter",
    arguments: argparse.Namespace,
) -> None:
    """Records the shots that match zero-shot on the task, or prints what is missing for it."""
    if len(few) < 2:
        return
    import numpy as np

    from clip_lightning.evaluation.probe import shots_to_match
    from clip_lightning.records import Record, read_records

    target = arguments.zero_shot
    if target is None:
        file = folder / "evaluation.jsonl"
        scores = [r for r in read_records(file) if (r.what, r.task) == (arguments.metric, name)]
        if not scores:
            print(f"no zero-shot {arguments.metric} of {name} in {file}: evaluate it, or write --zero-shot X")
            return
        target = scores[-1].value
    shots = np.array(sorted(few))
    matched = shots_to_match(shots.astype(float), np.array([few[k] for k in shots.tolist()]), target)
    writer.write([Record(what="shots_to_match_zero_shot", value=matched, task=name, split=split)])
    how = f"is matched by {matched:.3g}" if np.isfinite(matched) else f"is not matched by {shots[-1]}"
    print(f"zero-shot at {100 * target:.1f}% {how} images of a class")


if __name__ == "__main__":
    run_command(main)
