"""Durations in the words of the field, and their one truth: samples.

A duration is written as samples ("12.8M samples", "400M"), steps ("2000 steps"), epochs ("32 epochs") or a share of the
run ("5%", "0.05"), and becomes a whole number of optimizer steps, counted in samples.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from clip_lightning.errors import UserError

FORMS = '"400M samples", "2000 steps", "32 epochs", "5%" or "0.05"'
_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
_FORM = re.compile(r"(\d[\d_,]*(?:\.\d+)?|\.\d+)(e[+-]?\d+)? ?([kMB]?) ?(samples?|steps?|epochs?|%)?", re.ASCII)


class Duration(NamedTuple):
    """An exact amount of `samples`, `steps`, `epochs`, or of the whole `run` (then a share of 1)."""

    amount: Fraction
    unit: str


def parse(text: str) -> Duration:
    """Reads a duration; a number without a unit is a share of the run, or with k, M or B samples.

    Raises:
        UserError: the text is none of the forms, or is a number from 1 without a unit.
    """
    match = _FORM.fullmatch(text.strip())
    if not match:
        raise UserError(f'"{text}" is not a duration; write it like {FORMS}')
    digits, exponent, suffix, unit = match.groups()
    amount = Fraction(digits.replace("_", "").replace(",", "") + (exponent or "")) * _SUFFIXES[suffix]
    if unit == "%":
        return Duration(amount / 100, "run")
    if unit:
        return Duration(amount, unit.rstrip("s") + "s")
    if amount >= 1 and not suffix:
        number = text.strip()
        raise UserError(f'"{text}" has no unit; write "{number} epochs", "{number} steps" or "{number} samples"')
    return Duration(amount, "run" if 0 < amount < 1 else "samples")


def to_samples(text: str, *, global_batch: int, epoch_samples: int | None, total_samples: int | None) -> int:
    """The samples of a duration, rounded to whole steps of `global_batch`; what is above 0 is at least one step.

    Args:
        text: the duration.
        global_batch: samples of one optimizer step.
        epoch_samples: training pairs of one epoch, where they are known.
        total_samples: length of the run, where it is known.

    Raises:
        UserError: the text is no duration, or its unit is not known here.
    """
    amount, unit = parse(text)
    unit_samples = {"samples": 1, "steps": global_batch, "epochs": epoch_samples, "run": total_samples}[unit]
    if unit_samples is None:
        reason = {"epochs": "how many pairs an epoch has is not known", "run": "a share needs the run's own length"}
        raise UserError(f'"{text}" cannot be counted in samples here: {reason[unit]}; write it in samples or steps')
    samples = amount * unit_samples
    steps = int(samples / global_batch + Fraction(1, 2))
    return global_batch * (max(1, steps) if samples > 0 else 0)
