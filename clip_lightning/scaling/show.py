"""The verb show: what the page of a study is drawn from. `__main__` draws it."""

import argparse
import base64
import html
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from clip_lightning.errors import UserError
from clip_lightning.scaling import fit_command
from clip_lightning.scaling.allocation import groups_of, vertices
from clip_lightning.scaling.check import Test, back_tests, describe
from clip_lightning.scaling.compare import at_budgets
from clip_lightning.scaling.fit import Settings, fit
from clip_lightning.scaling.law import Law, budget_of
from clip_lightning.scaling.resampling import percentiles
from clip_lightning.scaling.table import Points, read_table, select

HELP = "one page of a study: law, isoFLOP curves, residuals, back-tests (.png or .html)"


@dataclass(frozen=True)
class Page:
    """What a page shows: tables for the figure, the text beside it, names."""

    tables: dict[str, pd.DataFrame]
    text: str
    answer: str
    title: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of show."""
    fit_command.add_table_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png or .html")


def page_of(arguments: argparse.Namespace) -> Page:
    """Fits the table and collects what is drawn. Raises: UserError: the table, or another name of --out."""
    if arguments.out.suffix not in (".png", ".html"):
        raise UserError(f"--out {arguments.out}: write a name that ends in .png or .html")
    table = select(read_table(arguments.table), arguments.where)
    points, k = fit_command.read_points(arguments, table)
    settings = fit_command.settings_of(arguments, k)
    law = fit(points, arguments.form, settings, file=arguments.table.name)
    tests = _tests(points, arguments.form, settings)
    tables = {"points": _points(points, law), "curve": _curve(law)}
    if "n" in law.roles:
        tables |= _isoflop(points, law, k)
    good = [asdict(test) for test in tests if not test.reason]
    if good:
        tables["back_tests"] = pd.DataFrame(good).sort_values("reach")
    text = fit_command.describe(law)
    if arguments.form == "surface":
        text += "\n\n" + "\n".join(fit_command.allocate(points, law, k)[1])
    if tests:
        text += "\n\n" + describe("cut-off", tests)
    return Page(tables, text, law.columns["y"], f"{law.form}: {law.columns['y']} of {law.data['file']}")


def page_html(page: Page, png: bytes) -> str:
    """One file with the figure in it."""
    picture = base64.b64encode(png).decode()
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(page.title)}</title>\n"
        f"<body style='font-family:sans-serif;max-width:70em;margin:2em auto'><h1>{html.escape(page.title)}</h1>\n"
        f"<img style='width:100%' alt='figures of the study' src='data:image/png;base64,{picture}'>\n"
        f"<pre>{html.escape(page.text)}</pre></body></html>\n"
    )


def _tests(points: Points, form: str, settings: Settings) -> list[Test]:
    try:
        return back_tests(points, form, replace(settings, draws=min(settings.draws, 200)))
    except UserError:  # one budget: nothing to test on
        return []


def _answers(law: Law, values: np.ndarray) -> np.ndarray:
    return 1 - values if law.kind == "accuracy" and law.form != "two_step" else values


def _points(points: Points, law: Law) -> pd.DataFrame:
    budget = budget_of(points.inputs, law.flops_per_nd)
    residual = fit_command.residuals_of(law, points)
    return pd.DataFrame({"budget": budget, "value": _answers(law, points.y), "residual": residual})


def _curve(law: Law) -> pd.DataFrame:
    low, high = law.ranges["budget"]
    budgets = np.geomspace(low, high * float(law.settings["reach_limit"]), 60)
    curve = pd.DataFrame({"budget": budgets, "value": at_budgets(law, budgets), "reach": budgets / high})
    curve["low"], curve["high"] = np.nan, np.nan
    if len(law.stages[0].draws):
        curve["low"], curve["high"] = percentiles(at_budgets(law, budgets, draws=True))
    return curve


def _isoflop(points: Points, law: Law, k: float) -> dict[str, pd.DataFrame]:
    """Only budgets with three runs or more are curves."""
    budget = points.inputs.get("x", k * points.inputs["n"] * points.inputs["d"])
    rows = [
        {"budget": float(np.exp(np.log(budget[group]).mean())), "n": points.inputs["n"][j], "value": points.y[j]}
        for group in groups_of(budget)
        if len(group) >= 3
        for j in group
    ]
    if not rows:
        return {}
    found = pd.DataFrame(rows)
    found["value"] = _answers(law, found["value"].to_numpy())
    found = found.groupby(["budget", "n"], as_index=False)["value"].mean()
    least = pd.DataFrame(
        [{"budget": v.budget, "n": 10**v.position, "value": v.value, "reason": v.reason} for v in vertices(points, k)]
    )
    least["value"] = _answers(law, least["value"].to_numpy())
    return {"isoflop": found, "vertices": least}
