"""Figure 17: what evaluation images that the training data holds as well add to a zero-shot score.

    python -m experiments.figures.fig17_overlap RUN
    python -m experiments.figures.fig17_overlap RUN --folders DIR ... --data PATH

Section 5 of Radford et al. 2021: images of an evaluation set with a near-duplicate in the training data are Overlap,
the others Clean, and both together All. All minus Clean is what the overlap adds to the score; whether the accuracy on
Overlap is above that on Clean is tested by a one-sided binomial test, corrected for the number of data sets with any
overlap.

Near-duplicates are near by a perceptual hash and by the run's embeddings (`near_duplicates`). Besides the figure are
written: every pair (`fig17_overlap_pairs.csv`), and the training samples in them (`fig17_overlap_exclude.txt`), which
`data.exclude=FILE` leaves out of a run on the same data. `--data PATH` searches other data than the run's own, as a
later run will read it.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from clip_lightning.errors import UserError, run_command
from clip_lightning.formatting import aligned, listed
from clip_lightning.plots.overlap import overlap_effect
from experiments.figures.command import Command, Drawn
from experiments.figures.scores import number_range

if TYPE_CHECKING:
    from clip_lightning.config.schema import Config
    from clip_lightning.data.datamodule import ContrastiveDataModule
    from clip_lightning.evaluation.tasks import ZeroShotTask

SIGNIFICANT = 0.05
LEVEL = 0.995  # of the interval of the accuracy on Overlap, as in the paper


def options(parser: argparse.ArgumentParser) -> None:
    """The arguments of this figure."""
    parser.add_argument("--folders", nargs="+", default=[], metavar="DIR", help="data sets in CLIP_benchmark's layout")
    parser.add_argument("--data", metavar="PATH", help="training data to search instead of the run's; kind detected")
    parser.add_argument("--samples", type=int, help="search only so many samples, the first of training's order")
    parser.add_argument("--distance", type=int, default=6, help="most bits of 63 in which hashes differ (default: 6)")
    parser.add_argument("--cosine", type=float, default=0.9, help="least cosine of the embeddings (default: 0.9)")


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """The overlap of a run's evaluation sets with training data, and its effect on the run's newest checkpoint."""
    run = _one_run(arguments)
    import torch

    from clip_lightning.config import compose
    from clip_lightning.data.images.resize import Resize
    from clip_lightning.evaluation.tasks import build_tasks
    from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
    from clip_lightning.tokenizer import load_tokenizer
    from clip_lightning.training.saved_model import config_of_saved, find_checkpoint, load_model, refuse_targets
    from experiments.figures.near_duplicates import Pictures, hash_images, near_duplicates

    frozen = compose.read(run / "config.yaml")
    refuse_targets(frozen, [])
    config = config_of_saved(frozen, run)
    named = bool(arguments.tasks or arguments.folders)
    resize = Resize(config.model.vision.resize, config.model.vision.interpolation)
    names, folders = (
        (arguments.tasks or [], arguments.folders) if named else (config.eval.tasks or [], config.eval.folders)
    )
    tasks = [replace(task, resize=resize) for task in build_tasks(names, folders, config.eval.root)]
    _check(tasks)
    module = _data(frozen, arguments.data)
    layout = module.layout
    size = config.model.vision.image_size
    model = load_model(config, find_checkpoint(run, "last"))
    tokenizer = load_tokenizer(config.model.text, run / "tokenizer")
    sample_ids = np.arange(layout.num_samples, dtype=np.int64)
    if arguments.samples is not None:
        sample_ids = module.order.locate(np.arange(min(arguments.samples, module.num_samples))).sample_ids
    trained = Pictures("training data", lambda k: layout.read(k).image)
    hashes = hash_images(trained, sample_ids)
    pairs, rows = [], []
    for task in tasks:
        evaluated = Pictures(task.name, task.read)
        found = near_duplicates(
            model, (evaluated, hash_images(evaluated, np.arange(task.num_samples))), (trained, hashes),
            image_size=size, resize=resize, distance=arguments.distance, cosine=arguments.cosine,
        )  # fmt: skip
        names = [layout.name_of(k) for k in found.sample_id]
        pairs.append(found.assign(task=task.name, shard=[n.shard for n in names], name=[n.name for n in names]))
        evaluator = ZeroShotEvaluator(task, size, batch=config.eval.batch, keep_predictions=True)
        evaluator.run(model, tokenizer, torch.device("cpu"))
        table = evaluator.predictions[0].to_pandas()
        overlap = table["index"].isin(found.image).to_numpy()
        rows.append({"task": task.name, **effect(table.correct.to_numpy(), overlap)})
    searched = f"{len(sample_ids):,} of {layout.num_samples:,} training samples of {arguments.data or config.data.name}"
    return _draw(pd.DataFrame(rows), pd.concat(pairs), layout.fingerprint(), run, arguments, searched)


def effect(correct: np.ndarray, overlap: np.ndarray) -> dict[str, float]:
    """Accuracy on All, Clean and Overlap, and the test of Overlap against Clean.

    Args:
        correct: share of a hit of each image, float [n]; a share, of equal logits, counts as a hit from one half on in
            the test alone.
        overlap: bool [n].
    Returns: n, overlap (images), share, all, clean, overlap_accuracy, low and high (its Clopper-Pearson interval at
        99.5 %), p (one-sided, with the accuracy on Clean as the probability of a hit); NaN where a part is empty.
    """
    from scipy.stats import binomtest

    num, nan = int(overlap.sum()), float("nan")
    found: dict[str, float] = {"n": len(correct), "overlap": num, "share": num / len(correct), "all": correct.mean()}
    found["clean"] = float(correct[~overlap].mean()) if num < len(correct) else nan
    found |= {"overlap_accuracy": nan, "low": nan, "high": nan, "p": nan}
    if num:
        hits = int((correct[overlap] >= 0.5).sum())
        interval = binomtest(hits, num).proportion_ci(LEVEL, method="exact")
        found |= {"overlap_accuracy": float(correct[overlap].mean()), "low": interval.low, "high": interval.high}
        if num < len(correct):
            found["p"] = binomtest(hits, num, found["clean"], alternative="greater").pvalue
    return found


def corrected(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with what the figure shows: p after Bonferroni's correction, differences and kind."""
    tested = rows.p.notna().sum()
    both = (rows.p * tested).clip(upper=1.0)
    kind = np.select([both < SIGNIFICANT, rows.p < SIGNIFICANT], ["corrected", "alone"], "none")
    return rows.assign(
        p_corrected=both,
        gain=rows["all"] - rows.clean,
        difference=rows.overlap_accuracy - rows.clean,
        low=rows.low - rows.clean,
        high=rows.high - rows.clean,
        kind=kind,
    )


def _one_run(arguments: argparse.Namespace) -> Path:
    if len(arguments.runs) > 1:
        raise UserError(f"Figure 17 is of one run, and there are {len(arguments.runs)}; name one.")
    (run,) = arguments.runs
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not the directory of a run: it has no config.yaml.")
    if not 0 <= arguments.distance <= 63:
        raise UserError(f"--distance={arguments.distance} must be 0 to 63, bits of a hash that differ.")
    if not -1 <= arguments.cosine <= 1:
        raise UserError(f"--cosine={arguments.cosine:g} must be -1 to 1.")
    if arguments.samples is not None and arguments.samples < 1:
        raise UserError(f"--samples={arguments.samples} must be at least 1.")
    return Path(run)


def _check(tasks: "list[ZeroShotTask]") -> None:
    if not tasks:
        raise UserError("Figure 17 needs data sets to look for; name them with --tasks or --folders DIR.")
    several = [task.name for task in tasks if task.labels.ndim > 1 or task.groups is not None]
    if several:
        raise UserError(
            f"Figure 17 counts hits of single images with one label each, and {several[0]} has several labels or "
            "groups; leave it out with --tasks."
        )


def _data(frozen: "Config", path: str | None) -> "ContrastiveDataModule":
    """The data of the run, or that at a path as a later run will read it."""
    from clip_lightning.config import compose
    from clip_lightning.config.detect import data_option
    from clip_lightning.data.datamodule import ContrastiveDataModule

    data = frozen.data
    if path is not None:
        data = compose.load("train", [f"data={data_option(path)}"], check=False).data
        data.path = path
    if data.kind == "scenes" and data._target_ is None:
        raise UserError(
            "Figure 17 searches images that are stored, and the embedded scenes are drawn as they are read; name "
            "stored ones with --data PATH."
        )
    data.exclude = None  # ids count all samples
    return ContrastiveDataModule(data, image_size=frozen.model.vision.image_size, seed=frozen.compute.seed)


def _draw(
    rows: pd.DataFrame,
    pairs: pd.DataFrame,
    fingerprint: str,
    run: Path,
    arguments: argparse.Namespace,
    searched: str,
) -> Drawn:
    from clip_lightning.config.exclusion import text_of

    shown = corrected(rows)
    head = ["data set", "n", "overlap", "All (%)", "Clean (%)", "Overlap (%)", "All - Clean", "p", "p corrected"]
    lines = [
        [
            row.task, f"{row.n:,}", f"{row.overlap:,} ({100 * row.share:.2f} %)", _percent(row.all),
            _percent(row.clean), _percent(row.overlap_accuracy), _percent(row.gain, "+"), _p(row.p),
            _p(row.p_corrected),
        ]
        for row in shown.itertuples()
    ]  # fmt: skip
    tested = int(shown.p.notna().sum())
    excluded = pairs.sample_id.nunique()
    numbers = [
        aligned([head, *lines]),
        f"overlap: median {100 * shown.share.median():.2f} %, mean {100 * shown.share.mean():.2f} %; "
        f"{(shown.overlap == 0).sum()} of {len(shown)} data sets without any",
        f"significant at {SIGNIFICANT}: {(shown.p < SIGNIFICANT).sum()} of {tested} alone, "
        f"{(shown.kind == 'corrected').sum()} after Bonferroni's correction",
        f"{excluded:,} training samples are near-duplicates: data.exclude={arguments.out}/fig17_overlap_exclude.txt",
    ]
    caption = (
        f"Zero-shot top-1 of {run.resolve().name} on {listed(shown.task, 6)}; split: test; n = "
        f"{number_range(rows.n.min(), rows.n.max())} images. Overlap: near-duplicates among {searched} (at most "
        f"{arguments.distance} of 63 bits of a perceptual hash differ, mirrored or not, and the cosine of embeddings "
        f"is {arguments.cosine:g} or more). Bars: 99.5 % interval (Clopper-Pearson). One-sided binomial test against "
        f"Clean, corrected for the {tested} with overlap."
    )
    comment = f"training samples with a near-duplicate in {', '.join(shown.task)}"
    texts = {
        "_pairs.csv": pairs[["task", "image", "sample_id", "shard", "name", "distance", "cosine"]].to_csv(
            index=False, float_format="%.4f"
        ),
        "_exclude.txt": text_of(pairs.sample_id.astype(int), fingerprint, [comment]),
    }
    return Drawn(overlap_effect(shown, caption), shown, numbers, caption, texts)


def _percent(value: float, sign: str = "") -> str:
    return "-" if np.isnan(value) else f"{100 * value:{sign}.2f}"


def _p(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"


COMMAND = Command("fig17_overlap", "Figure 17: overlap of training and evaluation images.", from_runs, options=options)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
