"""The verb compare: two recipes or data sets, by the difference of their laws and where these cross.

Both are fitted to one table. Where their designs are equal row by row (same inputs and seed), one set of bootstrap
factors serves both, so that noise that they share cancels in the difference; otherwise draws are independent.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from clip_lightning.errors import UserError
from clip_lightning.formatting import aligned, listed, percent
from clip_lightning.scaling import fit_command
from clip_lightning.scaling.fit import fit
from clip_lightning.scaling.forms import Array
from clip_lightning.scaling.law import Law, plain, write_complete
from clip_lightning.scaling.resampling import percentiles
from clip_lightning.scaling.table import of_table, read_table, select

HELP = "compare two recipes or data sets: difference of their laws, and where these cross"
_SIZES, _BUDGETS = 120, 200


@dataclass(frozen=True)
class Difference:
    """The first minus the second at one budget, each at its best split of the budget.

    Attributes:
        first, second: what the laws predict.
        low, high: 95 % interval of the difference.
        share_first_better: of the draws.
        reach: the budget as a factor of the largest of both.
    """

    budget: float
    first: float
    second: float
    low: float
    high: float
    share_first_better: float
    reach: float


@dataclass(frozen=True)
class Crossing:
    """Where the laws cross, within the reach; None where they do not.

    Attributes:
        share: of draws that cross there; the interval is that of those.
    """

    budget: float | None
    low: float | None
    high: float | None
    share: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of compare."""
    fit_command.add_table_arguments(parser)
    parser.add_argument("--by", required=True, metavar="COLUMN", help="what distinguishes the two, such as data")
    parser.add_argument(
        "--at", type=float, nargs="+", default=[], help="budgets (default: 1, 3 and 10 times the largest)"
    )
    parser.add_argument("--beyond-reach", action="store_true", help="also past the reach limit")
    parser.add_argument("--json", type=Path, metavar="OUT")


def run(arguments: argparse.Namespace) -> int:
    """Prints differences and crossing, and writes them."""
    table = select(read_table(arguments.table), arguments.where)
    column = of_table(table, arguments.by).astype(str)
    names = list(dict.fromkeys(column))
    if len(names) != 2:
        raise UserError(f"--by {arguments.by}: compare takes two values and this has {len(names)} ({listed(names)}); "
                        "select two by --where")  # fmt: skip
    if not arguments.draws:
        raise UserError("--draws 0: a comparison needs draws; write --draws 500")
    laws = []
    for name in names:
        points, k = fit_command.read_points(arguments, table[column == name])
        laws.append(fit(points, arguments.form, fit_command.settings_of(arguments, k), file=arguments.table.name))
    first, second = laws
    largest = max(law.ranges["budget"][1] for law in laws)
    budgets = np.array(arguments.at or [largest, 3 * largest, 10 * largest])
    check_reach(budgets, laws, arguments.beyond_reach)
    rows = differences(first, second, budgets)
    lines = [("budget", "reach", *names, "difference", "95% interval", f"{names[0]} is better in")]
    for one in rows:
        ends = f"[{one.low:+.4g}, {one.high:+.4g}]"
        values = f"{one.first:.4g}", f"{one.second:.4g}", f"{one.first - one.second:+.4g}"
        lines.append((f"{one.budget:.3g}", f"{one.reach:.3g}x", *values, ends, percent(one.share_first_better, 0)))
    print(f"{first.columns['y']}, law of {names[0]} minus law of {names[1]}\n{aligned(lines)}")
    found = crossing(first, second, max(float(budgets.max()), largest))
    print(describe(found))
    if arguments.json:
        content = {"names": names, "differences": [asdict(one) for one in rows], "crossing": asdict(found)}
        write_complete(arguments.json, json.dumps(plain(content), indent=1) + "\n")
    return 0


def check_reach(budgets: Array, laws: list[Law], beyond_reach: bool) -> None:
    """Refuses budgets past the reach limit of either law. Raises: UserError."""
    for law in laws:
        limit = float(law.settings["reach_limit"]) * law.ranges["budget"][1]
        if not beyond_reach and (budgets > limit * 1.0001).any():
            raise UserError(
                f"--at {budgets.max():.3g} is {budgets.max() / law.ranges['budget'][1]:.3g} times the largest budget "
                f"of one of the two, {law.ranges['budget'][1]:.3g}, and the reach limit is "
                f"{law.settings['reach_limit']:g} times: add larger runs, or write --beyond-reach"
            )


def at_budgets(law: Law, budgets: Array, draws: bool = False) -> Array:
    """The law at each budget, at the best split between n and d: [G], or [B, G] for each draw."""
    if law.roles == ("x",):
        return law.values({"x": budgets}, draws)
    low, high = law.ranges["n"]
    n = np.geomspace(low / 30, high * 30, _SIZES)
    n_all, budget_all = np.tile(n, len(budgets)), np.repeat(budgets, len(n))
    inputs = {"n": n_all, "d": budget_all / (law.flops_per_nd * n_all), "x": budget_all}
    if "u" in law.roles:
        inputs["u"] = np.full_like(n_all, law.ranges["u"][1])
    values = law.values(inputs, draws)
    split = values.reshape(*values.shape[:-1], len(budgets), len(n))
    return split.max(axis=-1) if law.kind == "accuracy" else split.min(axis=-1)


def differences(first: Law, second: Law, budgets: Array) -> list[Difference]:
    """At each budget."""
    values = at_budgets(first, budgets), at_budgets(second, budgets)
    drawn = at_budgets(first, budgets, True) - at_budgets(second, budgets, True)
    low, high = percentiles(drawn)
    better = (drawn > 0 if first.kind == "accuracy" else drawn < 0).mean(axis=0)
    largest = max(law.ranges["budget"][1] for law in (first, second))
    columns = (budgets, *values, low, high, better, budgets / largest)
    return [Difference(*map(float, row)) for row in zip(*columns, strict=True)]


def crossing(first: Law, second: Law, largest: float) -> Crossing:
    """The first budget at which the sign of the difference changes, from the least budget of both to `largest`."""
    least = min(law.ranges["budget"][0] for law in (first, second))
    budgets = np.geomspace(least, largest, _BUDGETS)
    estimate = at_budgets(first, budgets) - at_budgets(second, budgets)
    drawn = at_budgets(first, budgets, True) - at_budgets(second, budgets, True)
    found = np.array([_sign_change(budgets, row) for row in drawn])
    share = float(np.isfinite(found).mean())
    at = _sign_change(budgets, estimate)
    ends = percentiles(found[np.isfinite(found)]) if share else (None, None)
    low, high = (None if end is None else float(end) for end in ends)
    return Crossing(float(at) if np.isfinite(at) else None, low, high, share)


def _sign_change(budgets: Array, values: Array) -> float:
    """Interpolated in log budget; NaN without one."""
    changes = np.flatnonzero(np.diff(np.sign(values)) != 0)
    if not len(changes):
        return float("nan")
    k = changes[0]
    share = values[k] / (values[k] - values[k + 1])
    return float(np.exp(np.log(budgets[k]) + share * np.log(budgets[k + 1] / budgets[k])))


def describe(found: Crossing) -> str:
    """A sentence."""
    if found.budget is None:
        return f"crossing   none up to the largest budget shown; {percent(found.share, 0)} of the draws have one"
    ends = f"[{found.low:.3g}, {found.high:.3g}] in the {percent(found.share, 0)} of draws that cross"
    return f"crossing   at {found.budget:.3g}, {ends}"
