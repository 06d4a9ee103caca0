"""A fitted law: predicts without refitting, with intervals, and is a JSON file."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from clip_lightning.errors import UserError
from clip_lightning.formatting import count
from clip_lightning.scaling.forms import FORMS, Array, normalise
from clip_lightning.scaling.resampling import LEVEL, percentiles

VERSION = 2  # 2: the degrees of freedom of the noise
# Past ten times the largest budget the best form changes, and beyond a hundred times every form errs by 1 to 11 points:
# measured on the public runs of "robust comparison" (2506.04598) by fits below a cut and tests above it.
REACH_LIMIT = 10.0


_ENDS = ("low", "high", "run_low", "run_high")  # of the intervals of a prediction


@dataclass(frozen=True)
class Stage:
    """A form with its numbers, without units; `two_step` has two stages, the second reads what the first predicts.

    Attributes:
        form: its name.
        scales: of the inputs.
        coefficients, theta: the estimate, [K] and [P].
        draws: the bootstrap's [B, K + P]; B is 0 without one.
        sigma: standard deviation of a run's weighted residual, estimated with `freedom` degrees of freedom.
    """

    form: str
    scales: Array
    coefficients: Array
    theta: Array
    draws: Array
    sigma: float
    freedom: int

    def predict(self, inputs: Array, draws: bool = False) -> Array:
        """The law at inputs [N, I]: [N], or [B, N] for each draw."""
        form, num = FORMS[self.form], len(self.coefficients)
        z, _ = normalise(form, inputs, self.scales)
        both = self.draws if draws else np.concatenate([self.coefficients, self.theta])[None]
        phi, _ = form.features(z, both[:, num:])
        values: Array = np.einsum("mnk,mk->mn", phi, both[:, :num])
        return values if draws else values[0]

    def parameters(self, draws: bool = False) -> dict[str, Array]:
        """In the units of the table: name -> [1] or [B]."""
        form, num = FORMS[self.form], len(self.coefficients)
        both = self.draws if draws else np.concatenate([self.coefficients, self.theta])[None]
        return form.to_raw(both[:, :num], both[:, num:], self.scales)


@dataclass(frozen=True)
class Prediction:
    """The law at one place.

    Attributes:
        at: role -> value of the inputs.
        value: as the column y has it: a loss, an error or an accuracy.
        low, high: 95 % interval of the law (or of another level that was requested); None without draws.
        run_low, run_high: that interval of a new run, whose own noise is added.
        reach: budget or, without one, the farthest input, as a factor of the largest in the data; 1 or less: inside.
    """

    at: dict[str, float]
    value: float
    low: float | None
    high: float | None
    run_low: float | None
    run_high: float | None
    reach: float

    def __str__(self) -> str:
        place = ", ".join(f"{role}={count(value, 'G')}" for role, value in self.at.items())
        interval = "" if self.low is None else f" [{self.low:.4g}, {self.high:.4g}]"
        outside = f"{self.reach:.3g} times the largest budget of the data" if self.reach > 1.001 else "inside the data"
        return f"{self.value:.4g}{interval} at {place} ({outside})"


@dataclass(frozen=True)
class Law:
    """A fit.

    Attributes:
        form: power, power_floor, ..., two_step.
        estimator: variable_projection or huber.
        columns: role -> column of the table.
        kind: loss, error or accuracy: of the column y.
        stages: one, or two.
        ranges: role -> least and largest value of the data; `budget` is x, or n times d.
        data: fingerprint, number of points, file.
        verdicts: parameter -> its verdict, and the profile-likelihood interval.
        settings: residual, resample, draws, seed, share_at_optimum, held-out rows, ...
    """

    form: str
    estimator: str
    columns: dict[str, str]
    kind: str
    stages: tuple[Stage, ...]
    ranges: dict[str, tuple[float, float]]
    data: dict[str, Any]
    verdicts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        """The inputs that a prediction needs."""
        return FORMS[self.stages[0].form].inputs

    @property
    def parameters(self) -> dict[str, float]:
        """In the units of the table."""
        return {name: float(value[0]) for stage in self.stages for name, value in self._named(stage, False).items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % percentile intervals of the parameters; empty without draws."""
        found = {}
        for stage in self.stages:
            if len(stage.draws):
                for name, values in self._named(stage, True).items():
                    low, high = percentiles(values)
                    found[name] = (float(low), float(high))
        return found

    def draws_of(self, name: str) -> Array:
        """The bootstrap's values [B] of a parameter."""
        return next(found[name] for stage in self.stages if name in (found := self._named(stage, True)))

    def values(self, inputs: Mapping[str, Array], draws: bool = False) -> Array:
        """The law as the column y has it: [N], or [B, N] for each draw."""
        found = self.stages[0].predict(np.stack([np.asarray(inputs[role], float) for role in self.roles], 1), draws)
        for stage in self.stages[1:]:
            if draws:
                pairs = [replace(stage, draws=stage.draws[k : k + 1]) for k in range(len(stage.draws))]
                found = np.concatenate([one.predict(row[:, None], True) for one, row in zip(pairs, found, strict=True)])
            else:
                found = stage.predict(found[:, None])
        return 1 - found if self.kind == "accuracy" and self.form != "two_step" else found

    def reach(self, inputs: Mapping[str, Array]) -> Array:
        """How many times the largest budget of the data a place is, [N]; in a budget's absence of any input."""
        found = {role: np.asarray(value, float) for role, value in inputs.items()}
        return budget_of(found, self.flops_per_nd) / self.ranges["budget"][1]

    @property
    def flops_per_nd(self) -> float:
        """k in the budget C = k n d."""
        return float(self.settings.get("flops_per_nd", 1.0))

    def predict(
        self, inputs: Mapping[str, Array], *, beyond_reach: bool = False, level: float = LEVEL
    ) -> list[Prediction]:
        """The law with intervals.

        Args:
            inputs: role -> [N].
            beyond_reach: also where the reach limit of the fit is exceeded.
            level: of the intervals.
        Raises: UserError: a place is beyond the reach limit.
        """
        inputs = self.complete(inputs)
        limit, reaches = float(self.settings.get("reach_limit", REACH_LIMIT)), self.reach(inputs)
        if not beyond_reach and (reaches > limit).any():
            k = int(np.argmax(reaches))
            raise UserError(
                f"row {k + 1} of what is to be predicted has {reaches[k]:.3g} times the largest budget of the data "
                f"({self.ranges['budget'][1]:.3g}), and the reach limit is {limit:g} times: add larger runs, or write "
                "--beyond-reach for a number that no test supports"
            )
        values = self.values(inputs)
        ends: list[Any] = [[None] * len(values)] * 4
        if len(self.stages[0].draws):
            law = self.values(inputs, draws=True)
            ends = [*percentiles(law, level), *percentiles(self._with_noise(law), level)]
        return [
            Prediction(
                {role: float(inputs[role][k]) for role in self.roles},
                float(values[k]),
                reach=float(reaches[k]),
                **{name: None if end[k] is None else float(end[k]) for name, end in zip(_ENDS, ends, strict=True)},
            )
            for k in range(len(values))
        ]

    def complete(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The inputs that the form reads as arrays [N]; a budget that is missing is k n d.

        Raises: UserError: one is missing.
        """
        found = {role: np.atleast_1d(np.asarray(value, float)) for role, value in inputs.items()}
        if "x" in self.roles and "x" not in found and {"n", "d"} <= found.keys():
            found["x"] = self.flops_per_nd * found["n"] * found["d"]
        if missing := [role for role in self.roles if role not in found]:
            raise UserError(f"{self.form} also reads {', '.join(missing)}; write {missing[0]}=VALUE")
        return {role: found[role] for role in self.roles}

    def _with_noise(self, law: Array) -> Array:
        """Draws of a new run: the law's [B, N] with noise of one run, whose size is that of the residuals.

        The size is estimated from few residuals, so that the noise follows Student's distribution, not the normal one.
        """
        last = self.stages[-1]
        noise = np.random.default_rng(self.settings.get("seed", 0)).standard_t(last.freedom, law.shape) * last.sigma
        flipped = self.kind == "accuracy" and self.form != "two_step"
        scale = 1.0 if self.settings.get("residual") == "absolute" or self.form == "two_step" else law
        return law + noise * (1 - law if flipped else scale)

    def _named(self, stage: Stage, draws: bool) -> dict[str, Array]:
        found = stage.parameters(draws)
        return {f"loss.{name}": value for name, value in found.items()} if self._is_first_of_two(stage) else found

    def _is_first_of_two(self, stage: Stage) -> bool:
        return len(self.stages) == 2 and stage is self.stages[0]

    @property
    def verdict(self) -> str:
        """identified, or the parameters that are not."""
        wrong = [name for name, text in self.verdicts.items() if text != "identified"]
        return f"not identified: {', '.join(wrong)}" if wrong else "identified"

    def save(self, path: Path, **more: Any) -> None:
        """Writes the law as JSON, complete or not at all.

        Args: more: further entries for readers, such as predictions; `load` does not read them.
        """
        text = json.dumps(plain({**self.to_json(), **more}), indent=1, allow_nan=False) + "\n"
        write_complete(path, text)

    def to_json(self) -> dict[str, Any]:
        """What the file holds; `parameters`, `intervals` and `verdict` are for readers and are computed again."""
        return {
            "version": VERSION,
            "parameters": self.parameters,
            "intervals": self.intervals,
            "predictions": [],
            "verdict": self.verdict,
            "verdicts": self.verdicts,
            **{name: getattr(self, name) for name in ("form", "estimator", "columns", "kind", "ranges", "data")},
            "settings": self.settings,
            "stages": [asdict(stage) for stage in self.stages],
        }


def load(path: Path) -> Law:
    """A law that `save` has written.

    Raises: UserError: it is missing, or is not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise UserError(f"{path}: this fit is of version {content['version']}; fit its table again")
        arrays = ("scales", "coefficients", "theta", "draws")
        stages = [
            Stage(**dict(stage, **{name: np.array(stage[name], float) for name in arrays}))
            for stage in content["stages"]
        ]
        names = ("form", "estimator", "columns", "kind", "data", "verdicts", "settings")
        ranges = {role: (low, high) for role, (low, high) in content["ranges"].items()}
        return Law(stages=tuple(stages), ranges=ranges, **{name: content[name] for name in names})
    except OSError as error:
        raise UserError(f"{path}: this fit cannot be read ({error.strerror}); write it by fit --json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a fit ({type(error).__name__}: {error}); write one by fit --json") from error


def budget_of(inputs: Mapping[str, Array], k: float = 1.0) -> Array:
    """x where it is among the inputs, else k n d."""
    return inputs["x"] if "x" in inputs else k * inputs["n"] * inputs["d"]


def plain(value: Any) -> Any:
    """A value for JSON: arrays as lists, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_complete(path: Path, text: str) -> None:
    """Writes a text file under another name and renames it; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".writing")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
