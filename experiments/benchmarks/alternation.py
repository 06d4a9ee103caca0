"""What all benchmarks share: both sides of a comparison run in turn, in one process, and medians are compared.

A neighbour on the machine then slows both sides. A ratio above 1 means that this project is better.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Work = Callable[[], int]
Clock = Callable[[], float]


class Row(NamedTuple):
    """One comparison: a number of both sides of which more is better, and what else is to be said.

    Attributes:
        ours, theirs: samples a second, medians over the rounds, unless `unit` says otherwise.
    """

    name: str
    ours: float
    theirs: float
    rounds: int
    note: str = ""
    unit: str = "samples/s"

    @property
    def ratio(self) -> float:
        """How many times better this project is."""
        return self.ours / self.theirs


def alternate(
    name: str, ours: Work, theirs: Work, *, rounds: int, note: str = "", clock: Clock = time.process_time
) -> Row:
    """Runs both sides in turn, once unmeasured and then `rounds` times.

    Args:
        ours, theirs: do the work, and return how many samples it was.
        clock: CPU time of this process; `time.perf_counter` where other processes do the work.
    """
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(rounds + 1):
        for side, work in (("ours", ours), ("theirs", theirs)):
            begin = clock()
            count = work()
            if number:
                rates[side].append(count / (clock() - begin))
    return Row(name, statistics.median(rates["ours"]), statistics.median(rates["theirs"]), rounds, note)


def report(rows: Iterable[Row], path: Path | None, extra: Sequence[dict[str, Any]] = ()) -> None:
    """Prints each row as it comes, and writes `{"ratios": {name: value}, "rows": [...]}` where a path is given."""
    done = []
    print(f"{'':24}{'ours':>12}{'theirs':>12}{'ratio':>8}")
    for row in rows:
        numbers = f"{row.ours:12,.4g}{row.theirs:12,.4g}{row.ratio:8.2f}"
        print(f"{row.name:24}{numbers}   {row.unit}  {row.note}".rstrip(), flush=True)
        done.append(row)
    if path is not None:
        ratios = {row.name: row.ratio for row in done}
        listed = [{**row._asdict(), "ratio": row.ratio} for row in done]
        path.write_text(json.dumps({"ratios": ratios, "rows": [*listed, *extra]}, indent=2) + "\n", encoding="utf-8")


def parser(description: str) -> argparse.ArgumentParser:
    """The flags of every benchmark, to which one may add."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--quick", action="store_true", help="a minute or some on two cores")
    found.add_argument("--json", type=Path, metavar="PATH", help="where the ratios are written")
    return found


def arguments(description: str) -> argparse.Namespace:
    """The flags of a benchmark that has no others."""
    return parser(description).parse_args()
