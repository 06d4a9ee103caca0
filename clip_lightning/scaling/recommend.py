"""The verb recommend: a budget and a fit -> the best model of a ladder, its samples and recipe, as a preset."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from clip_lightning.errors import UserError
from clip_lightning.formatting import aligned, count, hours
from clip_lightning.scaling import plan, plan_command
from clip_lightning.scaling.allocation import surface_allocation
from clip_lightning.scaling.costs import of_models
from clip_lightning.scaling.forms import Array
from clip_lightning.scaling.law import Law, load, plain, write_complete
from clip_lightning.scaling.presets import experiment
from clip_lightning.scaling.resampling import percentiles

HELP = "the best run for a budget in FLOPs, device-hours or money, as a config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of recommend."""
    parser.add_argument("fit", type=Path, metavar="FIT.json", help="a fit of n and d, such as --form surface")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--flops", type=float)
    budget.add_argument("--device-hours", type=float)
    budget.add_argument("--money", type=float, help="with --price-per-hour")
    plan_command.add_ladder_arguments(parser)
    plan_command.add_hardware_arguments(parser)
    parser.add_argument("--beyond-reach", action="store_true", help="also past the reach limit of the fit")
    parser.add_argument("--out", type=Path, metavar="DIR", help="config folder for the experiment file")
    parser.add_argument("--json", type=Path, metavar="OUT")


def run(arguments: argparse.Namespace) -> int:
    """Prints the recommendation and writes its files."""
    law, hardware = load(arguments.fit), plan_command.hardware_of(arguments)
    budget = budget_of(arguments, hardware)
    names, anchor, data = plan_command.ladder_of(arguments)
    check_reach(law, budget, arguments.beyond_reach)
    unique = arguments.unique
    cells = plan.grid(of_models(names), [budget], anchor, hardware, unique=unique, law=law)
    cells = [
        replace(one, name=f"recommended_{one.model}_{budget:.2g}".replace("+", "").replace(".", "p")) for one in cells
    ]
    best = plan.best_of(cells, law)
    print(plan.table(cells, law.columns["y"]))
    for line in describe(law, cells, best, budget, unique):
        print(line)
    if arguments.json:
        content = {"budget": budget, "best": asdict(cells[best]), "cells": [asdict(one) for one in cells]}
        interval = plan.expected_interval(law, cells[best], unique)
        write_complete(arguments.json, json.dumps(plain({**content, "interval": interval}), indent=1) + "\n")
    if arguments.out:
        source = f"python -m clip_lightning.scaling recommend FIT.json --flops {budget:.3g}"
        path = arguments.out / "experiment" / f"{cells[best].name}.yaml"
        write_complete(path, experiment(cells[best], data=data, compute=anchor.name, source=source))
        print(f"run        python train.py --config-dir={arguments.out} experiment={cells[best].name}")
    return 0


def budget_of(arguments: argparse.Namespace, hardware: plan.Hardware) -> float:
    """The budget in FLOPs. Raises: UserError: it is not above 0, or money without a price."""
    if arguments.money is not None and not arguments.price_per_hour:
        raise UserError("--money also needs --price-per-hour, what one device costs an hour")
    if arguments.flops is not None:
        found = float(arguments.flops)
    elif arguments.device_hours is not None:
        found = hardware.flops(arguments.device_hours)
    else:
        found = hardware.flops(arguments.money / arguments.price_per_hour)
    if not found > 0:
        raise UserError(f"the budget is {found:g} FLOPs; write one above 0")
    return found


def check_reach(law: Law, budget: float, beyond_reach: bool) -> None:
    """Refuses a budget past the reach limit of the fit, and a fit that does not read n and d. Raises: UserError."""
    if not {"n", "d"} <= set(law.roles):
        raise UserError(f"this fit is of {law.form}, which does not say how to split a budget; fit --form surface")
    reach, limit = budget / law.ranges["budget"][1], float(law.settings["reach_limit"])
    if reach > limit and not beyond_reach:
        raise UserError(
            f"the budget of {budget:.3g} FLOPs is {reach:.3g} times the largest of the fit "
            f"({law.ranges['budget'][1]:.3g}), and the reach limit is {limit:g} times: add larger runs, or "
            "write --beyond-reach"
        )


def describe(law: Law, cells: Sequence[plan.Cell], best: int, budget: float, unique: float | None) -> list[str]:
    """Lines: the choice with its interval, the cost of a wrong one, where the optimum is, the limit of unique data."""
    chosen, answer = cells[best], law.columns["y"]
    interval = plan.expected_interval(law, chosen, unique)
    ends = f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""
    reach = budget / law.ranges["budget"][1]
    outside = f"{reach:.3g} times the largest budget of the fit" if reach > 1 else "inside the data of the fit"
    lines = [
        f"best       {chosen.model}, {count(chosen.recipe.samples)} samples, {chosen.flops:.4g} FLOPs, "
        f"{hours(chosen.device_hours)} device-hours: {answer} {chosen.expected:.4f}{ends} ({outside})"
    ]
    draws = _draws(law, cells, unique)
    rows = []
    for step, word in ((-1, "smaller"), (1, "larger")):
        other = best + step
        if not 0 <= other < len(cells):
            rows.append((f"one {word}", "the ladder ends here: the optimum may lie outside it", ""))
            continue
        cost = (cells[other].expected or 0) - (chosen.expected or 0)
        wrong = ""
        if draws is not None:
            low, high = percentiles(draws[:, other] - draws[:, best])
            better = draws[:, other] > draws[:, best] if law.kind == "accuracy" else draws[:, other] < draws[:, best]
            wrong = f"[{low:+.4f}, {high:+.4f}]; better in {better.mean():.0%} of draws"
        rows.append((f"one {word}", f"{cells[other].model}: {answer} {cost:+.4f}", wrong))
    lines += aligned(rows).splitlines()
    if law.form == "surface":
        stage = law.stages[0]
        lines.append(
            f"optimum    {surface_allocation(stage.parameters(), stage.parameters(draws=True), law.flops_per_nd)}"
        )
    if unique:
        epochs = chosen.recipe.samples / unique
        lines.append(f"data       {epochs:.2f} epochs of {count(unique)} unique pairs")
        if epochs > plan.MOST_EPOCHS and "u" not in law.roles:
            largest = unique * plan.MOST_EPOCHS
            lines.append(
                f"           past {plan.MOST_EPOCHS:g} epochs this fit is optimistic, since it has no term for "
                f"repeated data: fit --form bounded --unique, or take a larger model with {count(largest)} samples "
                "at most"
            )
    return lines


def _draws(law: Law, cells: Sequence[plan.Cell], unique: float | None) -> Array | None:
    """The bootstrap's predictions [B, cells]; None without draws."""
    if not len(law.stages[0].draws):
        return None
    inputs = {"n": [one.flops_per_sample for one in cells], "d": [one.recipe.samples for one in cells]}
    if unique:
        inputs["u"] = [unique] * len(cells)
    return law.values(law.complete(inputs), draws=True)
