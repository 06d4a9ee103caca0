"""Leaf: how numbers, sizes, times, settings and tables are written for people.

Values come in as fractions of 1, samples, bytes and seconds. Percent, k, M and B exist on screens and axes only.
"""

import json
import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

MOST_LISTED = 10  # items of a list that a sentence shows


def own_command(name: str, words: Iterable[str] = ()) -> str:
    """`train` or `evaluate` with settings, for a shell: by the program that started this process.

    That is `clip-lightning` or `python -m clip_lightning` of an installed wheel, which has no train.py; otherwise the
    checkout's train.py and evaluate.py.
    """
    started = Path(sys.argv[0])
    program = ["python", f"{name}.py"]
    if started.name == "clip-lightning":
        program = [started.name, name]
    elif started.parts[-2:] == ("clip_lightning", "__main__.py"):
        program = ["python", "-m", "clip_lightning", name]
    return shlex.join([*program, *words])


def count(number: float, giga: str = "B") -> str:
    """12800000 -> "12.8M"; `giga` is the suffix of 10^9: B for samples, G for FLOPs."""
    for size, suffix in ((1e15, "P"), (1e12, "T"), (1e9, giga), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def percent(fraction: float, digits: int = 1) -> str:
    """0.614 -> "61.4%"."""
    return f"{100 * fraction:.{digits}f}%"


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """A fraction in percent with its interval, whose ends need not be equally far away: "5.9% [1.0%, 27.0%]"."""
    return percent(value) if low is None or high is None else f"{percent(value)} [{percent(low)}, {percent(high)}]"


def bytes_shown(size: float) -> str:
    """1610612736 -> "1.50 GiB"; below a GiB "75.3 MiB"."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


def clock(seconds: float) -> str:
    """3725 -> "1:02:05"; below an hour "2:05"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def hours(number: float | None) -> str:
    """Hours to three digits: "0.0123", "76,000"; "-" for None."""
    if number is None:
        return "-"
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 100 else f"{number:.3g}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table: columns side by side, the last one as long as it is; empty without lines."""
    if not lines:
        return ""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]) - 1)]
    return "\n".join("  ".join([*map(str.ljust, line, widths), line[-1]]).rstrip() for line in lines)


def listed(items: Iterable[Any], most: int = MOST_LISTED) -> str:
    """The items in one line, of a long list its beginning and how many follow: "1, 2, 3 and 997 more"."""
    words = [str(item) for item in items]
    shown = ", ".join(words[:most])
    return f"{shown} and {len(words) - most:,} more" if len(words) > most else shown


def setting(value: Any) -> str:
    """A value as it is written on a command line and in YAML: true, null, 4e-4, [a,b], {a:1}."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(setting, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{setting(item)}" for key, item in value.items()) + "}"
    return str(value)


def _number(value: float) -> str:
    """The shortest text that reads back as the same float: 0.0004 -> "4e-4", 0.9 -> "0.9"."""
    if not math.isfinite(value) or 1e-3 <= abs(value) < 1e6 or value == 0:
        return repr(value)
    return f"{Decimal(repr(value)).normalize():e}".replace("e+", "e")
