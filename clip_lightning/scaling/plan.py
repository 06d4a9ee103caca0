"""A grid of runs for a study: budgets times a ladder of models, each run with a recipe that fits its length."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_lightning.errors import UserError
from clip_lightning.formatting import aligned, count, hours, listed
from clip_lightning.scaling.allocation import of_surface
from clip_lightning.scaling.costs import Cost, of_models
from clip_lightning.scaling.law import Law
from clip_lightning.scaling.recipe import Anchor, Recipe
from clip_lightning.scaling.resampling import percentiles

LADDERS = {
    # Radford et al. 2021, Tables 19 and 20; L/14 at 336 pixels continues L/14 and is not a run of its own.
    "paper": ("rn50", "rn101", "vit_b32", "vit_b16", "rn50x4", "rn50x16", "vit_l14", "rn50x64"),
    # "Robust comparison" (2506.04598) and Cherti et al. 2023 (2212.07143), the sizes that conf/model has.
    "laion": ("vit_s32", "vit_m32", "vit_s16", "vit_b32", "vit_m16", "vit_b16", "vit_l14", "vit_h14", "vit_g14"),
    "cpu": (
        "tiny_eighth",
        "tiny_quarter",
        "tiny_three_eighths",
        "tiny_half",
        "tiny_three_quarters",
        "tiny",
        "tiny_double",
    ),
}
PRIOR = Path(__file__).parent / "priors" / "laion_clip_imagenet.json"
DESIGNS = ("isoflop", "trunk")
COOLDOWN = 0.2  # share of a run: at 20 % and above a cool-down equals a tuned cosine (2405.18392)
# Past so many epochs repeated data is worth clearly less than new data (Muennighoff et al. 2023, 2305.16264).
MOST_EPOCHS = 4.0


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        budget: FLOPs that were wanted; `flops` what the whole steps of the run take, towers and loss.
        flops_per_sample: of training.
        device_hours: at the stated share of the peak; `price` for those, both None where they are not stated.
        epochs: None where the unique samples are not stated.
        expected: what the prior predicts; None without one.
    """

    name: str
    model: str
    budget: float
    flops: float
    flops_per_sample: float
    recipe: Recipe
    device_hours: float | None = None
    price: float | None = None
    epochs: float | None = None
    expected: float | None = None


@dataclass(frozen=True)
class Hardware:
    """What a FLOP takes.

    Attributes:
        peak: FLOP/s of one device.
        mfu: the share of it that training reaches.
        price_per_hour: of one device, in any currency.
    """

    peak: float
    mfu: float
    price_per_hour: float | None = None

    def device_hours(self, flops: float) -> float:
        """Of so many FLOPs."""
        return flops / (self.peak * self.mfu) / 3600

    def flops(self, device_hours: float) -> float:
        """That so many hours do."""
        return device_hours * 3600 * self.peak * self.mfu


def samples_for(cost: Cost, budget: float, anchor: Anchor) -> float:
    """The samples whose training takes the budget; the batch follows from them, and the loss from the batch."""
    samples = budget / cost.towers()
    for _ in range(20):
        samples = budget / cost.per_sample(anchor.batch(samples))
    return samples


def cell(
    cost: Cost, budget: float, anchor: Anchor, hardware: Hardware, *, unique: float | None = None,
    law: Law | None = None, length: float | None = None, prefix: str = "plan",
) -> Cell:  # fmt: skip
    """One run of a model with a budget.

    Args:
        unique: distinct training pairs.
        law: of n (training FLOPs of a sample) and d (samples), for the expected answer.
        length: samples that the recipe follows; None: those of the run.
    """
    batch = anchor.batch(length or samples_for(cost, budget, anchor))
    samples = budget / cost.per_sample(batch)
    relative = cost.towers() / of_models([anchor.model])[0].towers() if anchor.model else 1.0
    recipe = anchor.recipe(samples, length, relative)
    per_sample = cost.per_sample(recipe.global_batch)
    flops = per_sample * recipe.samples
    taken = hardware.device_hours(flops)
    price = None if hardware.price_per_hour is None else taken * hardware.price_per_hour
    expected = None
    if law is not None:
        place = law.complete({"n": per_sample, "d": recipe.samples, **({"u": unique} if unique else {})})
        expected = float(law.values(place)[0])
    return Cell(
        f"{prefix}_{cost.name}_{budget:.2g}".replace("+", "").replace(".", "p"), cost.name, budget, flops, per_sample,
        recipe, taken, price, recipe.samples / unique if unique else None, expected,
    )  # fmt: skip


def grid(
    costs: Sequence[Cost], budgets: Sequence[float], anchor: Anchor, hardware: Hardware, *,
    unique: float | None = None, law: Law | None = None, design: str = "isoflop",
) -> list[Cell]:  # fmt: skip
    """All cells, by budget and size; those too short to train are left out.

    Args: design: isoflop: every run has the recipe of its length; trunk: the runs of one model share batch and rate,
        so that they can be branches of one run at a constant rate.
    Raises: UserError: no cell is long enough.
    """
    cells, problems = [], []
    for budget in budgets:
        for cost in sorted(costs, key=lambda one: one.towers()):
            length = None
            if design == "trunk":
                length = samples_for(cost, float(np.exp(np.mean(np.log(budgets)))), anchor)
            try:
                cells.append(cell(cost, budget, anchor, hardware, unique=unique, law=law, length=length))
            except UserError as error:
                problems.append(f"{cost.name} at {budget:.3g} FLOPs: {error}")
    if not cells:
        raise UserError(*problems)
    return cells


def check_bracket(cells: Sequence[Cell], rising: bool = False) -> None:
    """Refuses a ladder whose optimum may lie at or beyond one of its ends.

    Args: rising: the expected answer is an accuracy.
    Raises: UserError: one sentence for each budget.
    """
    problems = []
    for budget in dict.fromkeys(one.budget for one in cells):
        row = sorted((one for one in cells if one.budget == budget), key=lambda one: one.flops_per_sample)
        if len(row) < 3:
            names = listed(one.model for one in row)
            problems.append(
                f"budget {budget:.3g}: {len(row)} models of the ladder can train on it ({names}), and a minimum "
                "needs three; add smaller models, or a larger budget"
            )
            continue
        expected = [one.expected for one in row]
        if any(value is None for value in expected):
            continue
        values = np.array(expected, float)
        best = int(np.argmax(values) if rising else np.argmin(values))
        if best in (0, len(row) - 1):
            end, wanted = ("smallest", "smaller") if best == 0 else ("largest", "larger")
            second = 1 if best == 0 else best - 1
            margin = abs(values[best] - values[second])
            problems.append(
                f"budget {budget:.3g}: the prior expects {row[best].model}, the {end} of the ladder, to be the best, "
                f"{margin:.2g} ahead of {row[second].model}, so the ladder does not bracket the optimum; add {wanted} "
                f"models, or drop the {end} budgets (--unbracketed plans it anyway)"
            )
    if problems:
        raise UserError(*problems)


def table(cells: Sequence[Cell], answer: str) -> str:
    """The cells for a person."""
    head = ("budget", "model", "samples", "epochs", "batch", "rate", "warm-up", "beta2", "steps", "FLOPs", "hours")
    lines = [(*head, "price", answer)]
    for one in cells:
        recipe = one.recipe
        lines.append(
            (
                f"{one.budget:.3g}", one.model, count(recipe.samples),
                "-" if one.epochs is None else f"{one.epochs:.2f}", f"{recipe.global_batch:,}",
                f"{recipe.learning_rate:.3g}", count(recipe.warmup_samples), f"{recipe.beta2:g}",
                f"{recipe.steps:,}", f"{one.flops:.4g}", hours(one.device_hours),
                "-" if one.price is None else f"{one.price:,.0f}",
                "-" if one.expected is None else f"{one.expected:.4f}",
            )
        )  # fmt: skip
    return aligned(lines)


def sum_of(cells: Sequence[Cell]) -> str:
    """What all cells take together, as a sentence."""
    total = sum(one.flops for one in cells)
    taken = [one.device_hours for one in cells if one.device_hours is not None]
    prices = [one.price for one in cells if one.price is not None]
    money = f", price {sum(prices):,.0f}" if prices else ""
    return f"{len(cells)} runs: {total:.4g} FLOPs, {hours(sum(taken))} device-hours{money}"


def rung_budgets(costs: Sequence[Cost], law: Law) -> list[float]:
    """The budget at which each model is the best by a fitted surface: where n*(C) is its FLOPs of a sample.

    Raises: UserError: the fit is not a surface.
    """
    if law.form != "surface":
        raise UserError(f"a dial needs a fit of --form surface, and this is {law.form}")
    exponent, intercept = of_surface({k: np.array([v]) for k, v in law.parameters.items()}, law.flops_per_nd)
    return [float(10 ** ((np.log10(one.towers()) - intercept[0]) / exponent[0])) for one in costs]


def best_of(cells: Sequence[Cell], law: Law) -> int:
    """The index of the cell with the best expected answer."""
    values = np.array([one.expected for one in cells], float)
    return int(np.argmax(values) if law.kind == "accuracy" else np.argmin(values))


def best_cells(
    costs: Sequence[Cost], budgets: Sequence[float], anchor: Anchor, hardware: Hardware, law: Law
) -> list[Cell]:
    """For each budget the run of the model that a fit makes the best of the ladder."""
    rows = [grid(costs, [budget], anchor, hardware, law=law) for budget in budgets]
    return [row[best_of(row, law)] for row in rows]


def tied_budgets(costs: Sequence[Cost], model: str, samples: float) -> list[float]:
    """Budgets without a fit: samples grow like the FLOPs of a sample, through one known run.

    Raises: UserError: the model is not on the ladder.
    """
    known = next((one for one in costs if one.name == model), None)
    if known is None:
        raise UserError(f"--tie {model}: this model is not on the ladder ({listed(one.name for one in costs)})")
    return [samples * one.towers() / known.towers() * one.towers() for one in costs]


def expected_interval(law: Law, one: Cell, unique: float | None = None) -> tuple[float, float] | None:
    """The 95 % interval of the law at a cell; None without draws."""
    if not len(law.stages[0].draws):
        return None
    extra = {"u": unique} if unique else {}
    place = law.complete({"n": one.flops_per_sample, "d": one.recipe.samples, **extra})
    low, high = percentiles(law.values(place, draws=True))
    return float(low[0]), float(high[0])
