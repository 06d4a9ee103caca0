"""The verb plan: `python -m clip_lightning.scaling plan --ladder laion --budgets 1e20 1e21 1e22 --device h100`."""

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np

from clip_lightning.errors import UserError
from clip_lightning.scaling import plan
from clip_lightning.scaling.costs import DEVICES, Cost, of_models
from clip_lightning.scaling.law import Law, load, plain, write_complete
from clip_lightning.scaling.presets import rung, write_experiments
from clip_lightning.scaling.recipe import ANCHORS, Anchor

HELP = "plan the runs of a study: samples, batch, rate, FLOPs, hours; writes experiment files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of plan."""
    add_ladder_arguments(parser)
    add_hardware_arguments(parser)
    parser.add_argument("--budgets", nargs="+", default=[], metavar="FLOPS", help="like 1e20 1e21, or 1e20:1e22:5")
    parser.add_argument("--design", choices=plan.DESIGNS, default="isoflop")
    parser.add_argument("--prior", default="auto", help="a fit by n and d, none, or auto: LAION's runs (not on a CPU)")
    parser.add_argument(
        "--unbracketed", action="store_true", help="plan although the ladder does not bracket the optimum"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="config folder for the experiment files")
    parser.add_argument(
        "--dial",
        type=Path,
        metavar="DIR",
        help="write the group scale= instead: a rung for each budget with its best model, or without --budgets a rung "
        "for each model at the budget where it is the best",
    )
    parser.add_argument("--tie", metavar="MODEL=SAMPLES", help="of a dial without a fit: one run that is known")
    parser.add_argument("--json", type=Path, metavar="OUT")


def add_ladder_arguments(parser: argparse.ArgumentParser) -> None:
    """Which models, data and recipe; recommend has them, too."""
    parser.add_argument("--ladder", choices=plan.LADDERS, default="laion")
    parser.add_argument("--models", nargs="+", help="names of conf/model instead of a ladder")
    parser.add_argument(
        "--anchor", choices=ANCHORS, help="recipe that others follow from (default: cpu for the ladder cpu)"
    )
    parser.add_argument("--data", help="option of data= in the files (default: laion2b; of the ladder cpu scenes)")
    parser.add_argument("--unique", type=float, help="distinct training pairs, for the epochs")


def add_hardware_arguments(parser: argparse.ArgumentParser) -> None:
    """What a FLOP takes and costs."""
    parser.add_argument("--device", choices=DEVICES, default="h100")
    parser.add_argument("--peak-tflops", type=float, help="peak of another device")
    parser.add_argument(
        "--mfu", type=float, default=0.35, help="share of the peak that training reaches (default 0.35)"
    )
    parser.add_argument("--price-per-hour", type=float, help="of one device")


def hardware_of(arguments: argparse.Namespace) -> plan.Hardware:
    """What the flags state. Raises: UserError: an MFU that is not a share."""
    if not 0 < arguments.mfu <= 1:
        raise UserError(f"--mfu {arguments.mfu:g}: this is a share of the peak; write a number between 0 and 1")
    peak = arguments.peak_tflops * 1e12 if arguments.peak_tflops else DEVICES[arguments.device]
    return plan.Hardware(peak, arguments.mfu, arguments.price_per_hour)


def ladder_of(arguments: argparse.Namespace) -> tuple[list[str], Anchor, str]:
    """The models, the anchor of the recipe, and the data's option."""
    names = list(arguments.models or plan.LADDERS[arguments.ladder])
    is_cpu = all(name.startswith("tiny") for name in names)
    anchor = ANCHORS[arguments.anchor or ("cpu" if is_cpu else "laion")]
    return names, anchor, arguments.data or ("scenes" if is_cpu else "laion2b")


def budgets_of(words: list[str]) -> list[float]:
    """Budgets from "1e20 1e21" or "1e20:1e22:5", in rising order. Raises: UserError."""
    found: list[float] = []
    for word in words:
        try:
            if ":" in word:
                low, high, num = word.split(":")
                found += np.geomspace(float(low), float(high), int(num)).tolist()
            else:
                found.append(float(word))
        except ValueError as error:
            raise UserError(f"--budgets {word}: write FLOPs like 1e20, or LOW:HIGH:NUMBER like 1e20:1e22:5") from error
    if not found or min(found) <= 0:
        raise UserError("--budgets needs one number of FLOPs or more, above 0; write --budgets 1e20:1e22:5")
    return sorted(found)


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan and writes its files."""
    names, anchor, data = ladder_of(arguments)
    hardware, costs = hardware_of(arguments), of_models(names)
    law = _prior(arguments.prior, anchor)
    source = f"python -m clip_lightning.scaling {shlex.join(_words(arguments))}"
    if arguments.dial:
        return _write_dial(arguments, costs, anchor, hardware, law, source)
    budgets = budgets_of(arguments.budgets)
    cells = plan.grid(
        costs, budgets, anchor, hardware, unique=arguments.unique, law=law, design=arguments.design
    )  # fmt: skip
    answer = law.columns["y"] if law else "expected"
    print(plan.table(cells, answer))
    print(plan.sum_of(cells))
    print(f"hours at {arguments.mfu:.0%} of {hardware.peak / 1e12:g} TFLOP/s; FLOPs of both towers and the loss")
    if law:
        reach = max(one.flops for one in cells) / law.ranges["budget"][1]
        outside = f"{reach:.3g} times the largest budget of its data" if reach > 1 else "inside its data"
        print(f"expected   {answer} by {law.data['file']}, up to {outside}: a prior for the ladder, no promise")
    if any(one.epochs is not None and one.epochs > plan.MOST_EPOCHS for one in cells):
        print(
            f"epochs     some runs repeat their data more than {plan.MOST_EPOCHS:g} times; fit --form bounded --unique"
        )
    if not arguments.unbracketed:
        plan.check_bracket(cells, rising=law is not None and law.kind == "accuracy")
    if arguments.json:
        write_complete(arguments.json, json.dumps(plain([asdict(one) for one in cells]), indent=1) + "\n")
    if arguments.out:
        write_experiments(cells, arguments.out, data=data, compute=anchor.name, source=source, design=arguments.design)
        listed = ",".join(one.name for one in cells)
        print(f"written    {len(cells)} files; run them, and again what is missing, with two seeds each:\n"
              f"python train.py -m --config-dir={arguments.out} experiment={listed} compute.seed=0,1")  # fmt: skip
    return 0


def _write_dial(
    arguments: argparse.Namespace, costs: list[Cost], anchor: Anchor, hardware: plan.Hardware, law: Law | None,
    source: str,
) -> int:  # fmt: skip
    costs = sorted(costs, key=lambda one: one.towers())
    budgets, cells = [], []
    if law is not None and arguments.budgets:
        cells = plan.best_cells(costs, budgets_of(arguments.budgets), anchor, hardware, law)
    elif law is not None:
        budgets = plan.rung_budgets(costs, law)
    elif arguments.tie:
        model, _, samples = arguments.tie.partition("=")
        try:
            budgets = plan.tied_budgets(costs, model, float(samples))
        except ValueError as error:
            raise UserError(f"--tie {arguments.tie}: write it as MODEL=SAMPLES, like tiny=256000") from error
    else:
        raise UserError("--dial needs a fit (--prior FIT.json), or a run that is known (--tie tiny=256000)")
    folder = arguments.dial / "scale"
    cells = cells or [
        plan.cell(cost, budget, anchor, hardware, law=law) for cost, budget in zip(costs, budgets, strict=True)
    ]
    answer = law.columns["y"] if law else ""
    for number, one in enumerate(cells, 1):
        cost = of_models([one.model])[0]
        text = rung(number, one, cost, compute=anchor.name, source=source, answer=answer)
        write_complete(folder / f"r{number}.yaml", text)
    print(plan.table(cells, answer or "expected"))
    print(f"written    {folder}/r1.yaml to r{len(cells)}.yaml: python train.py scale=r1")
    return 0


def _prior(word: str, anchor: Anchor) -> Law | None:
    """Raises: UserError: a fit that does not read n and d."""
    if word == "none" or (word == "auto" and anchor is ANCHORS["cpu"]):
        return None
    law = load(plan.PRIOR if word == "auto" else Path(word))
    if not {"n", "d"} <= set(law.roles):
        raise UserError(f"--prior {word}: this fit is of {law.form}; a plan needs one of n and d, like surface")
    return law


def _words(arguments: argparse.Namespace) -> list[str]:
    """The words of the command, without paths, for the header of a preset."""
    words = ["plan", "--ladder", arguments.ladder] if not arguments.models else ["plan", "--models", *arguments.models]
    if arguments.budgets:
        words += ["--budgets", *arguments.budgets]
    if arguments.dial:
        words += ["--tie", arguments.tie] if arguments.tie else ["--prior", arguments.prior]
        words += ["--dial", "conf"]
    return [*words, "--design", arguments.design] if arguments.design != "isoflop" else words
