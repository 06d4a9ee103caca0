"""Writes a cell of a plan as a preset that train.py reads: `experiment=NAME`, or a rung of the group `scale`."""

from collections.abc import Sequence
from pathlib import Path

from clip_lightning.formatting import hours, setting
from clip_lightning.scaling.costs import Cost
from clip_lightning.scaling.law import write_complete
from clip_lightning.scaling.plan import COOLDOWN, Cell

_PRECISION_DIGITS = 4


def experiment(one: Cell, *, data: str, compute: str, source: str, design: str = "isoflop") -> str:
    """The YAML of `experiment=` for a cell.

    Args:
        data: option of the group data.
        compute: option of the group compute that the values override.
        source: the command that planned it.
    """
    expected = "not run here" if one.expected is None else f"{one.expected:.4g} by the plan's prior"
    taken = f", {hours(one.device_hours)} device-hours" if one.device_hours and one.device_hours >= 0.01 else ""
    head = [
        f"A run of a scaling study: {one.model} with {one.budget:.3g} FLOPs.",
        f"source: {source}",
        f"cost: {one.flops:.4g} FLOPs{taken}",
        f"expected: {expected}",
        f"python train.py --config-dir=DIR experiment={one.name}",
    ]
    return _preset(head, one, [f"override /data: {data}", f"override /model: {one.model}"], compute, one.name, design)


def rung(number: int, one: Cell, cost: Cost, *, compute: str, source: str, answer: str = "") -> str:
    """The YAML of `scale=r<number>`. Args: answer: the column that the fit predicts."""
    expected = "not run here" if one.expected is None else f"{answer} {one.expected:.4g} by the fit of the source"
    head = [
        f"Rung {number} of the dial: {one.model}, {cost.parameters:,} parameters, {one.recipe.samples:,} samples.",
        f"source: {source}",
        f"cost: {one.flops:.4g} FLOPs",
        f"expected: {expected}",
        f"python train.py scale=r{number} data=scenes",
    ]
    return _preset(head, one, [f"override /model: {one.model}"], compute, f"scale_r{number}", "isoflop")


def write_experiments(cells: Sequence[Cell], folder: Path, **more: str) -> list[Path]:
    """Writes one file for each cell into the group `experiment` of a config folder; returns the files."""
    paths = []
    for one in cells:
        path = folder / "experiment" / f"{one.name}.yaml"
        write_complete(path, experiment(one, **more))
        paths.append(path)
    return paths


def _preset(head: Sequence[str], one: Cell, overrides: Sequence[str], compute: str, name: str, design: str) -> str:
    recipe = one.recipe
    lines = ["# @package _global_", *(f"# {line}" for line in head), "defaults:"]
    lines += [f"  - {line}" for line in (*overrides, f"override /compute: {compute}")]
    lines += [
        "compute:",
        f"  name: {name}",
        f"  duration: {recipe.samples} samples # {recipe.steps:,} steps",
        f"  global_batch: {recipe.global_batch}",
        f"  learning_rate: {setting(float(f'{recipe.learning_rate:.{_PRECISION_DIGITS}g}'))}",
        f"  warmup: {recipe.warmup_samples} samples",
    ]
    if design == "trunk":
        cooldown = round(COOLDOWN * recipe.steps) * recipe.global_batch
        lines += ["  schedule: constant_cooldown", f"  cooldown: {cooldown} samples"]
    return "\n".join([*lines, "optimizer:", f"  beta2: {recipe.beta2:g}"]) + "\n"
