"""Figure 13: accuracy under natural distribution shift over accuracy on ImageNet's classes of the shifted sets.

    python -m experiments.figures.fig13_robustness --testbed robustness_top1s.csv
    python -m experiments.figures.fig13_robustness --paper
    python -m experiments.figures.fig13_robustness runs/* --reference shape --shifts shape_sketch shape_blurred

The line is fitted over standard models only: of `--testbed` its STANDARD ones, of runs those with `supervised_*`
records. `--paper` draws the right panel alone, since the points of the left one were never printed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clip_lightning.errors import UserError, run_command
from clip_lightning.evaluation.robustness import LogitFit, effective_robustness, fit_logits, gap_closed
from clip_lightning.formatting import aligned
from clip_lightning.plots.robustness import STANDARD, ZERO_SHOT, class_gallery, paired_scores, robustness
from experiments.figures import paper_tables
from experiments.figures.command import Command, Drawn, measured_by, scores_of_runs
from experiments.figures.scores import averages, describe, select
from experiments.figures.testbed import RESNET101, read_testbed

_ZERO_SHOT_NAMES = {"vit_b_32_clip_zeroshot": "CLIP ViT-B/32", "resnet50_clip_zeroshot": "CLIP RN50"}
_SHIFTS_OF_IMAGENET = "7 natural distribution shifts of ImageNet (pm-0 and pm-10 of the video sets averaged)"


def options(parser: argparse.ArgumentParser) -> None:
    """The arguments of this figure."""
    parser.add_argument("--testbed", type=Path, metavar="CSV", help="results file of imagenet-testbed")
    parser.add_argument("--reference", metavar="TASK", help="of runs: the data set without the shift")
    parser.add_argument("--shifts", nargs="+", metavar="TASK", help="of runs: the shifted data sets")
    parser.add_argument("--images", type=Path, metavar="DIR", help="draws a gallery: a folder of images per data set")
    parser.add_argument("--class-name", default="one class", help="of the gallery: what the images show")


def from_paper(arguments: argparse.Namespace) -> Drawn:
    """Figure 13, right: ResNet-101 and zero-shot CLIP of equal ImageNet accuracy, and the means of Table 16."""
    if arguments.images:
        return _gallery(arguments.images, arguments.class_name)
    paired = _printed_pairs()
    rows = [[row.task, f"{100 * row.first:.1f}", f"{100 * row.second:.1f}", f"{100 * (row.second - row.first):+.1f}"]
            for row in paired.itertuples()]  # fmt: skip
    means = paper_tables.shifts()
    means = averages(means[means.task != "ImageNet"].assign(prompts="", prompts_hash=""))
    numbers = [
        aligned([["data set", *paired.attrs["names"], "difference"], *rows]),
        f"mean over {_SHIFTS_OF_IMAGENET}, Table 16:",
        *(f"{row.model:<38}{100 * row.value:.2f}" for row in means.itertuples()),
    ]
    caption = (
        f"{' and '.join(paired.attrs['names'])}, as printed in Figure 13 of Radford et al. 2021: "
        f"{len(paired)} data sets; top-1; split: test; n = {min(paired.n):,} to {max(paired.n):,} images. "
        "All standard models: --testbed."
    )
    return Drawn(paired_scores(paired, caption), paired, numbers, caption)


def from_others(arguments: argparse.Namespace) -> Drawn:
    """The results file of imagenet-testbed, or runs."""
    if arguments.testbed:
        if arguments.runs:
            raise UserError("--testbed draws a results file and takes no runs; leave one of them out.")
        return from_testbed(arguments.testbed)
    return from_runs(arguments)


def from_testbed(path: Path) -> Drawn:
    """The standard models of imagenet-testbed with their fit, its CLIP models, ResNet-101 beside the ideal model."""
    points = read_testbed(path)
    fit, numbers = fit_standard(points)
    resnet = points[points.model == RESNET101]
    if len(resnet):
        accuracy, shifted = float(resnet.accuracy.iloc[0]), float(resnet.shifted.iloc[0])
        numbers.append(
            f"ResNet-101: {100 * accuracy:.1f} without, {100 * shifted:.1f} under the shifts: "
            f"{(1 - shifted) / (1 - accuracy):.2f} times as many errors as the ideal model at its ImageNet accuracy"
        )
    points = points.replace({"model": _ZERO_SHOT_NAMES | {RESNET101: "ResNet-101"}})
    zero_shot = points[points.group == ZERO_SHOT]
    numbers += _robust(zero_shot, fit)
    caption = (
        f"{_SHIFTS_OF_IMAGENET} over ImageNet on their classes; top-1; split: test; n = {min(_sizes()):,} to "
        f"{max(_sizes()):,} images. Fit: {fit.num_models} standard models of imagenet-testbed (Taori et al. 2020), "
        "logits, 95 % band of a bootstrap over models. Right: as printed in Figure 13 of Radford et al. 2021."
    )
    drawn = robustness(
        points, curve_of(points, fit), "ImageNet, classes of the shifted sets", "mean of 7 natural shifts",
        _printed_pairs(), [*zero_shot.model, "ResNet-101"], caption,
    )  # fmt: skip
    return Drawn(drawn, points, numbers, caption)


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """Runs: zero-shot ones against a fit over the supervised ones."""
    reference, shifts = arguments.reference, arguments.shifts
    if not reference or not shifts:
        raise UserError(
            "Figure 13 of runs needs --reference TASK and --shifts TASK ...: the data sets of its two axes."
        )
    arguments.tasks = [reference, *shifts]
    scores = scores_of_runs(arguments)
    made = measured_by(arguments.runs, f"--supervised --tasks {' '.join(arguments.tasks)}")
    needed = f"Figure 13 needs standard models, trained on labels, for its fit; {made}"
    standard = select(scores, "supervised", needed)
    zero_shot = select(scores, "zero_shot", "Figure 13 needs zero-shot scores; make them: python evaluate.py run=DIR")
    parts = [points_of(rows, reference, group) for rows, group in ((standard, STANDARD), (zero_shot, ZERO_SHOT))]
    parts[0].model += ", supervised"  # the same run's image tower
    points = pd.concat(parts, ignore_index=True)
    inside = points[["accuracy", "shifted"]].gt(0).all(axis=1) & points[["accuracy", "shifted"]].lt(1).all(axis=1)
    outside = points[~inside]
    left_out = [f"left out, since 0 and 1 have no logit: {row.model} ({row.group})" for row in outside.itertuples()]
    points = points[inside].reset_index(drop=True)
    fit, numbers = fit_standard(points)
    numbers += [*_robust(points[points.group == ZERO_SHOT], fit), *left_out]
    caption = (
        f"{describe(zero_shot)} Over {reference}. Fit: {fit.num_models} supervised models, logits, 95 % band of a "
        "bootstrap over models."
    )
    labelled = list(points[points.group == ZERO_SHOT].model) if (points.group == ZERO_SHOT).sum() <= 4 else []
    drawn = robustness(
        points, curve_of(points, fit), reference, f"mean of {len(shifts)} shifted sets", None, labelled, caption
    )
    return Drawn(drawn, points, numbers, caption)


def points_of(scores: pd.DataFrame, reference: str, group: str) -> pd.DataFrame:
    """model, group, accuracy on the reference, shifted: the mean over the other data sets."""
    accuracy = averages(scores[scores.task == reference]).set_index("model").value
    shifted = averages(scores[scores.task != reference]).set_index("model").value
    both = pd.DataFrame({"accuracy": accuracy, "shifted": shifted}).dropna().reset_index()
    return both.assign(group=group)[["model", "group", "accuracy", "shifted"]]


def fit_standard(points: pd.DataFrame) -> tuple[LogitFit, list[str]]:
    """The fit over the standard models, and a line about it. Raises UserError for fewer than three."""
    standard = points[points.group == STANDARD]
    fit = fit_logits(standard.accuracy.to_numpy(), standard.shifted.to_numpy())
    (low, high), (below, above) = fit.slope_interval, fit.intercept_interval
    return fit, [
        f"logit(shifted) over logit(accuracy), {fit.num_models} standard models: slope {fit.slope:.3f} (95 % interval "
        f"{low:.3f} to {high:.3f}), intercept {fit.intercept:.3f} ({below:.3f} to {above:.3f}), r2 {fit.r2:.3f}"
    ]


def _robust(points: pd.DataFrame, fit: LogitFit) -> list[str]:
    robust = 100 * effective_robustness(points.accuracy.to_numpy(), points.shifted.to_numpy(), fit)
    closed = 100 * gap_closed(points.accuracy.to_numpy(), points.shifted.to_numpy(), fit)
    return [
        f"{row.model}: {100 * row.accuracy:.1f} without, {100 * row.shifted:.1f} under the shifts; "
        f"effective robustness {above:+.1f} points; "
        + ("the fit has no robustness gap there" if np.isnan(share) else f"{share:.0f} % of the robustness gap closed")
        for row, above, share in zip(points.itertuples(), robust, closed, strict=True)
    ]


def curve_of(points: pd.DataFrame, fit: LogitFit) -> pd.DataFrame:
    """The fit with its band over the range of all models."""
    accuracy = np.linspace(points.accuracy.min(), points.accuracy.max(), 200)
    low, high = fit.band(accuracy)
    return pd.DataFrame({"accuracy": accuracy, "shifted": fit.predict(accuracy), "low": low, "high": high})


def _printed_pairs() -> pd.DataFrame:
    names = ["ResNet-101", "Zero-shot CLIP L/14-336"]
    wide = paper_tables.read("figure13").pivot_table("value", "dataset", "model", sort=False) / 100
    tasks = [paper_tables.SHIFT_NAMES[name] for name in wide.index]
    sizes = [paper_tables.SHIFT_SIZES[task] for task in tasks]
    paired = pd.DataFrame(
        {"task": tasks, "first": wide[names[0]].to_numpy(), "second": wide[names[1]].to_numpy(), "n": sizes}
    )
    paired.attrs["names"] = names
    return paired


def _sizes() -> Sequence[int]:
    return [size for task, size in paper_tables.SHIFT_SIZES.items() if task != "ImageNet"]


def _gallery(folder: Path, title: str) -> Drawn:
    """One row of up to five images for each folder below `folder`, with the scores that the paper prints."""
    from PIL import Image

    pairs = {row.task: row for row in _printed_pairs().itertuples()}
    rows, names = [], []
    for part in sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ():
        files = sorted(path for path in part.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))[:5]
        images = [np.asarray(Image.open(file).convert("RGB").resize((128, 128))) for file in files]
        score = (
            f"{100 * pairs[part.name].first:.1f} | {100 * pairs[part.name].second:.1f}" if part.name in pairs else ""
        )
        if images:
            rows.append((part.name, score, images))
            names.append({"data set": part.name, "images": len(images), "scores": score})
    if not rows:
        raise UserError(
            f"--images={folder} needs a folder of images for each data set, such as {folder}/ImageNetV2/1.jpg."
        )
    caption = (
        "Images of one class; top-1 in percent of ResNet-101 | zero-shot CLIP L/14-336 on all classes (Figure 13)."
    )
    numbers = [f"{row['data set']}: {row['images']} images" for row in names]
    return Drawn(class_gallery(rows, title, caption), pd.DataFrame(names), numbers, caption)


COMMAND = Command(
    "fig13_robustness",
    "Figure 13: accuracy under natural distribution shift.",
    from_others,
    from_paper,
    options,
    without_runs=lambda arguments: bool(arguments.testbed),
)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
