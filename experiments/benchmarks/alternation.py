"""What all benchmarks share: both sides of a comparison run in turn, each comparison in a process of its own.

Another load then slows both sides; medians are compared, and a ratio above 1 means that this project is
better. A process for each case frees its memory, and its peak is measured: below 8 GiB for every `--quick`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Work = Callable[[], int]
Clock = Callable[[], float]
Cases = Mapping[str, Callable[[], Iterable["Row"]]]


class Row(NamedTuple):
    """One comparison: a number of both sides of which more is better, and remarks.

    Attributes:
        ours, theirs: samples a second, medians over the rounds, unless `unit` is another.
        peak_gib: most resident memory of the case's process or of one that it started, GiB.
    """

    name: str
    ours: float
    theirs: float
    rounds: int
    note: str = ""
    unit: str = "samples/s"
    peak_gib: float | None = None

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


def run(
    module: str,
    flags: argparse.ArgumentParser,
    cases: Callable[[argparse.Namespace], Cases],
    extra: Callable[[argparse.Namespace], Sequence[dict[str, Any]]] = lambda settings: (),
) -> None:
    """The program of a benchmark: every case in a process of its own, then the report.

    Args:
        module: what `python -m` takes.
        cases: by name, what gives a case's rows; called in each process with the flags.
        extra: further rows, which compare nothing.
    """
    flags.add_argument("--case", metavar="NAME", help="only this comparison, in this process")
    settings = flags.parse_args()
    found = cases(settings)
    if settings.case is not None:
        report(found[settings.case](), settings.json)
        return
    report((row for name in found for row in _in_own_process(module, name)), settings.json, extra(settings))


def _in_own_process(module: str, name: str) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "rows.json"
        command = [sys.executable, "-m", module, *sys.argv[1:], "--case", name, "--json", str(written)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{module} --case {name} ended with exit code {process.returncode}")
        for row in json.loads(written.read_text(encoding="utf-8"))["rows"]:
            row.pop("ratio")
            yield Row(**row)._replace(peak_gib=usage.ru_maxrss / 2**20)


def report(rows: Iterable[Row], path: Path | None, extra: Sequence[dict[str, Any]] = ()) -> None:
    """Prints each row as it comes, and writes `{"ratios": {name: value}, "rows": [...]}` where a path is given."""
    done = []
    print(f"{'':28}{'ours':>12}{'theirs':>12}{'ratio':>8}{'peak GiB':>10}")
    for row in rows:
        peak = "" if row.peak_gib is None else f"{row.peak_gib:.2f}"
        numbers = f"{row.ours:12,.4g}{row.theirs:12,.4g}{row.ratio:8.2f}{peak:>10}"
        print(f"{row.name:28}{numbers}   {row.unit}  {row.note}".rstrip(), flush=True)
        done.append(row)
    if path is not None:
        ratios = {row.name: row.ratio for row in done}
        listed = [{**row._asdict(), "ratio": row.ratio} for row in done]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"ratios": ratios, "rows": [*listed, *extra]}, indent=2) + "\n", encoding="utf-8")


def parser(description: str) -> argparse.ArgumentParser:
    """The flags of every benchmark, to which one may add."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--quick", action="store_true", help="a few minutes on two cores")
    found.add_argument("--json", type=Path, metavar="PATH", help="where the ratios are written")
    return found
