"""Figure 14: what adapting to ImageNet, and adapting to the classes of a shifted set, change under natural shift.

    python -m experiments.figures.fig14_adaptation --paper
    python -m experiments.figures.fig14_adaptation RUN --reference TASK --shifts TASK ... --standard RUN ...

From a run: its linear probe minus its zero-shot score (adapting to the reference, whose images the probe was fitted
on), and its zero-shot score with each set's own class names minus that with the reference's (`--static`, a set of
prompts). With `--reference` and `--shifts` the left panel shows the same model with each adaptation: mean score on the
shifted sets over that on the reference, among standard models, which are the `supervised_*` records of the runs of
`--standard` (of `experiments.figures.resnet50` too).
"""

import argparse
from pathlib import Path

import pandas as pd

from clip_lightning.errors import UserError, run_command
from clip_lightning.plots.bars import difference_bars
from clip_lightning.plots.robustness import ADAPTED, STANDARD, ZERO_SHOT, adaptation
from experiments.figures import paper_tables
from experiments.figures.command import Command, Drawn, measured_by, scores_of_one_run, scores_of_runs
from experiments.figures.differences import differences
from experiments.figures.fig13_robustness import curve_of, fit_standard, points_of
from experiments.figures.scores import averages, describe, select

FEWEST_MODELS = 3  # of a fit
TO_REFERENCE, TO_CLASSES = "to ImageNet", "to class shift"


def options(parser: argparse.ArgumentParser) -> None:
    """The arguments of this figure."""
    parser.add_argument("--reference", metavar="TASK", help="of the left panel: the data set without the shift")
    parser.add_argument("--shifts", nargs="+", metavar="TASK", help="of the left panel: the shifted data sets")
    parser.add_argument("--standard", nargs="+", default=[], type=Path, metavar="RUN", help="runs of standard models")
    parser.add_argument("--static", metavar="PROMPTS", help="of a run: set of prompts with the reference's class names")


def from_paper(arguments: argparse.Namespace) -> Drawn:
    """The printed differences, checked against the means of Table 16."""
    rows = paper_tables.read("figure14")
    rows = rows.assign(task=rows.dataset.map(paper_tables.SHIFT_NAMES), value=rows.difference / 100)
    panels = [(f"adapt {name}", rows[rows.adaptation == name]) for name in (TO_REFERENCE, TO_CLASSES)]
    shifts = paper_tables.shifts()
    means = averages(shifts[shifts.task != "ImageNet"].assign(prompts="", prompts_hash="")).set_index("model").value
    probe, zero = (
        float(100 * means[means.index.str.startswith(name)].iloc[0]) for name in ("Linear Probe", "Zero-Shot")
    )
    mean = {name: 100 * float(part[part.task != "ImageNet"].value.mean()) for name, part in panels}
    both = mean["adapt to ImageNet"] - mean["adapt to class shift"]
    numbers = [line for title, part in panels for line in (title, *_lines(part))]
    numbers += [
        f"mean over the 7 shifts: adapt to ImageNet {mean['adapt to ImageNet']:+.2f} points, "
        f"adapt to class shift {mean['adapt to class shift']:+.2f} points",
        f"Table 16: zero-shot {zero:.2f} with own class names, linear probe {probe:.2f} with ImageNet's; "
        f"the difference, {probe - zero:+.2f}, is that of both steps ({both:+.2f})",
    ]
    sizes = paper_tables.SHIFT_SIZES.values()
    caption = (
        "Change of top-1 of CLIP ViT-L/14-336px, as printed in Figure 14 of Radford et al. 2021: ImageNet and 7 "
        f"natural shifts (pm-0 and pm-10 of the video sets averaged); split: test; "
        f"n = {min(sizes):,} to {max(sizes):,} images."
    )
    return Drawn(difference_bars(panels, "change (points)", caption), _table(panels), numbers, caption)


def from_runs(arguments: argparse.Namespace) -> Drawn:
    """The adaptations for which a run has records."""
    if bool(arguments.reference) != bool(arguments.shifts) or (arguments.standard and not arguments.reference):
        raise UserError("the left panel of Figure 14 needs both --reference TASK and --shifts TASK ...; name both.")
    if arguments.reference:
        arguments.tasks = [arguments.reference, *arguments.shifts]
    scores = scores_of_one_run(arguments, "Figure 14")
    zero = select(scores, "zero_shot", "Figure 14 needs zero-shot scores; make them: python evaluate.py run=DIR")
    own = zero[zero.prompts != arguments.static] if arguments.static else zero
    probe = scores[scores.method == "linear_probe"]
    panels = []
    if len(probe):
        title = f"adapt to {arguments.reference}" if arguments.reference else "supervised adaptation"
        panels.append((title, _differ(probe, own)))
    if arguments.static and (zero.prompts == arguments.static).any():
        panels.append(("adapt to class shift", _differ(own, zero[zero.prompts == arguments.static])))
    if not panels:
        raise UserError(
            "Figure 14 needs linear-probe scores, or zero-shot scores with two sets of prompts and --static NAME; "
            + measured_by(arguments.runs, "--probe")
        )
    caption = f"Change of the score of {scores.model.iloc[0]}. {describe(own)}"
    numbers = [line for title, part in panels for line in (title, *_lines(part))]
    if not arguments.reference:
        return Drawn(difference_bars(panels, "change (points)", caption), _table(panels), numbers, caption)
    static = zero[zero.prompts == arguments.static]
    steps = {"zero-shot": static if len(static) else own, "linear probe": probe}
    if len(static):
        steps["zero-shot, own classes"] = own
    points, left_out = _points(steps, arguments)
    standard = points[points.group == STANDARD]
    curve = None
    if len(standard) >= FEWEST_MODELS:
        fit, lines = fit_standard(points)
        numbers += lines
        curve = curve_of(points, fit)
    numbers += [
        f"{row.model}: {100 * row.accuracy:.1f} on {arguments.reference}, {100 * row.shifted:.1f} under the shifts"
        for row in points[points.group != STANDARD].itertuples()
    ]
    caption = f"{caption} Left: {len(standard)} standard models, trained on labels."
    shifted = f"mean of {len(arguments.shifts)} shifted sets"
    drawn = adaptation(points, curve, arguments.reference, shifted, panels, caption)
    table = pd.concat([_table(panels), points.rename(columns={"model": "task", "group": "adaptation"})])
    return Drawn(drawn, table, [*numbers, *left_out], caption)


def _points(steps: dict[str, pd.DataFrame], arguments: argparse.Namespace) -> tuple[pd.DataFrame, list[str]]:
    """The points of the left panel, and a line for each that has no place on axes of logits.

    Args: steps: scores of the run by the name of the adaptation.
    Raises: UserError where --standard has no model trained on labels.
    """
    groups = {"linear probe": ADAPTED}
    parts = [
        points_of(rows, arguments.reference, groups.get(name, ZERO_SHOT)).assign(model=name)
        for name, rows in steps.items()
        if len(rows)
    ]
    if arguments.standard:
        scores = scores_of_runs(argparse.Namespace(**{**vars(arguments), "runs": arguments.standard}))
        made = measured_by(arguments.standard, f"--supervised --tasks {' '.join(arguments.tasks)}")
        rows = select(scores, "supervised", f"--standard needs models trained on labels; {made}")
        parts.append(points_of(rows, arguments.reference, STANDARD))
    points = pd.concat(parts, ignore_index=True)
    inside = ((points[["accuracy", "shifted"]] > 0) & (points[["accuracy", "shifted"]] < 1)).all(axis=1)
    if not inside.any():
        raise UserError("no score of the left panel is between 0 and 100 %; leave --reference and --shifts out.")
    left_out = [f"left out, since 0 and 1 have no logit: {name}" for name in points.model[~inside]]
    return points[inside].reset_index(drop=True), left_out


def _differ(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    both = set(first.task) & set(second.task)
    return differences(first[first.task.isin(both)], second[second.task.isin(both)])


def _lines(rows: pd.DataFrame) -> list[str]:
    return [
        f"  {row.task:<20}{100 * row.value:+6.1f}" for row in rows.sort_values("value", ascending=False).itertuples()
    ]


def _table(panels: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    return pd.concat([rows.assign(adaptation=title)[["adaptation", "task", "value"]] for title, rows in panels])


COMMAND = Command("fig14_adaptation", "Figure 14: adapting to ImageNet and to classes.", from_runs, from_paper, options)
main = COMMAND.main

if __name__ == "__main__":
    run_command(main)
