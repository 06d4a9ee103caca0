"""How long a command takes until it prints, until its first step, and after its last one.

    python -m experiments.benchmarks.startup --json startup.json

Every round runs all commands once, in turn; medians are printed. `first line` is the banner's first line, `first step`
the first progress line of the embedded default logged every step, `end` the time from the last progress line to the
exit of the process, the evaluation and its figures left out. The first round reads files that the others find in the
page cache, and is printed on its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "--cfg job": ["train.py", "--cfg", "job"],
    "a mistyped key": ["train.py", "compute.lr=1"],
    "data.check --help": ["-m", "clip_lightning.data.check", "--help"],
    "import clip_lightning": ["-c", "import clip_lightning"],
}
STEPS = 5


def seconds(command: list[str]) -> float:
    """Wall time of a command of Python, in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=False)
    return time.perf_counter() - start


def run_seconds(folder: Path) -> dict[str, float]:
    """Seconds to the first line, to the first step, and from the last step to the exit, of a short run.

    Raises:
        RuntimeError: the run failed, or printed other lines than those that are timed.
    """
    command = [
        sys.executable, "train.py", f"runs={folder}", f"compute.duration={STEPS} steps", "cluster.log_every=1 steps",
        "eval=none", "logger=none", "data.validation.num_samples=0",
    ]  # fmt: skip
    start, times, printed = time.perf_counter(), {}, []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            now = time.perf_counter() - start
            printed.append(line)
            times.setdefault("first line", now)
            if line.startswith("sample "):
                times.setdefault("first step", now)
                times["last step"] = now
    if process.returncode or "last step" not in times:
        raise RuntimeError("".join(printed))
    times["end"] = time.perf_counter() - start - times.pop("last step")
    return times


def main() -> None:
    """Prints the first round and the medians of the others."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=5, help="after the first, cold one")
    arguments.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = arguments.parse_args()
    rounds = []
    for _ in range(given.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append({name: seconds(command) for name, command in COMMANDS.items()} | run_seconds(Path(folder)))
    medians = {name: statistics.median(times[name] for times in rounds[1:] or rounds) for name in rounds[0]}
    for name, median in medians.items():
        print(f"{name:24}{rounds[0][name]:7.2f} s first  {median:7.2f} s median of {max(1, given.rounds)}")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({"first": rounds[0], "median": medians}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
