"""`python -m clip_lightning.evaluation.compare A B`: is the second model better than the first, and on which images?

A and B are directories of runs evaluated with `eval.keep_predictions=true`, or files of predictions. Prints the paired
differences (B minus A) with intervals, and writes them (`compare.json`), the images on which the two disagree
(`disagreements.parquet`) and a picture of some of these (`disagreements.png`).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_lightning.errors import UserError, run_command
from clip_lightning.formatting import aligned, percent

if TYPE_CHECKING:
    import pandas as pd

    from clip_lightning.evaluation.compare.paired import Difference
    from clip_lightning.evaluation.tasks import ZeroShotTask
    from clip_lightning.plots.disagreements import Disagreement

_PIXELS = 224  # of an image in the picture


def main(words: Sequence[str] | None = None) -> int:
    """Compares, prints and writes; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clip_lightning.evaluation.compare", description="Paired differences of two models."
    )
    parser.add_argument("first", type=Path, metavar="A", help="directory of a run, or a file of predictions")
    parser.add_argument("second", type=Path, metavar="B", help="the same")
    parser.add_argument("--tasks", nargs="+", help="only these data sets")
    parser.add_argument("--prompts", help="only this set of prompts")
    parser.add_argument("--folders", nargs="+", default=[], metavar="DIR", help="data sets in CLIP_benchmark's layout")
    parser.add_argument("--root", metavar="DIR", help="folder of the suite's data sets, for the picture")
    parser.add_argument("--images", type=int, default=24, help="in the picture; 0: no picture (default: 24)")
    parser.add_argument("--out", type=Path, help="folder of the files (default: runs/compare/A-B)")
    arguments = parser.parse_args(words)
    if arguments.images < 0:
        raise UserError(f"--images counts the images of the picture and must be at least 0, not {arguments.images}.")
    from clip_lightning.evaluation.compare.paired import differences, pair, read_predictions

    both = pair(*(_chosen(read_predictions(path), path, arguments) for path in (arguments.first, arguments.second)))
    found = differences(both)
    names = _names(arguments.first, arguments.second)
    print(table(found, names))
    folder = arguments.out or Path("runs/compare") / f"{names[0]}-{names[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    written = {"first": str(arguments.first), "second": str(arguments.second), "rows": [asdict(one) for one in found]}
    (folder / "compare.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    apart = both[(both.correct_first >= 0.5) != (both.correct_second >= 0.5)]
    apart.to_parquet(folder / "disagreements.parquet", index=False)
    print(f"they disagree on {len(apart):,} of {len(both):,} images: {folder / 'disagreements.parquet'}")
    if arguments.images and len(apart):
        print(_draw(both, names, folder, arguments))
    return 0


def table(found: "Sequence[Difference]", names: tuple[str, str]) -> str:
    """The differences as a table, in percent and points."""
    head = ["task", "prompts", "metric", *names, "difference [95% interval]", "only A / B", "p", "n"]
    lines = [
        [
            one.task,
            one.prompts,
            one.metric,
            percent(one.first),
            percent(one.second),
            f"{100 * one.difference:+.2f} [{100 * one.low:+.2f}, {100 * one.high:+.2f}]",
            f"{one.only_first:,} / {one.only_second:,}",
            "-" if one.p is None else f"{one.p:.2g}",
            f"{one.n:,}",
        ]
        for one in found
    ]
    return aligned([head, *lines])


def _chosen(rows: "pd.DataFrame", path: Path, arguments: argparse.Namespace) -> "pd.DataFrame":
    for column, wanted in (("task", arguments.tasks), ("prompts", arguments.prompts and [arguments.prompts])):
        if wanted:
            if absent := [name for name in wanted if name not in set(rows[column])]:
                known = ", ".join(map(str, dict.fromkeys(rows[column])))
                raise UserError(f"--{column} {absent[0]}: {path} has no such predictions; it has {known}.")
            rows = rows[rows[column].isin(wanted)]
    return rows


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Short names of both: those of their directories, with the parent's where they are equal."""
    paths = [path.resolve() if path.is_dir() else path.resolve().parent for path in (first, second)]
    if paths[0].name != paths[1].name:
        return paths[0].name, paths[1].name
    if paths[0] != paths[1]:
        return f"{paths[0].parent.name}-{paths[0].name}", f"{paths[1].parent.name}-{paths[1].name}"
    return first.stem, second.stem


def _draw(both: "pd.DataFrame", names: tuple[str, str], folder: Path, arguments: argparse.Namespace) -> str:
    """Writes the picture; returns a line about it."""
    from clip_lightning.evaluation.compare.paired import disagreements
    from clip_lightning.plots.disagreements import disagreement_page

    rows = disagreements(both, arguments.images)
    tasks = _tasks(list(dict.fromkeys(rows.task)), arguments)
    panels = [_panel(row, tasks.get(row["task"])) for row in rows.to_dict("records")]
    path = folder / "disagreements.png"
    caption = f"A: {names[0]}, B: {names[1]}; {len(panels)} of the images that one of them alone classifies correctly."
    disagreement_page(panels, ("A", "B"), caption).savefig(path, metadata={"Software": None}, dpi=130)
    missing = sorted(set(rows.task) - tasks.keys())
    note = f" (without the images of {', '.join(missing)}: name --folders or --root)" if missing else ""
    return f"picture: {path}{note}"


def _tasks(names: Sequence[str], arguments: argparse.Namespace) -> "dict[str, ZeroShotTask]":
    """The tasks that can be opened here, by name."""
    from clip_lightning.evaluation.tasks import build_tasks

    folders = {Path(path).expanduser().resolve().name: path for path in (*_own_folders(arguments), *arguments.folders)}
    found = {}
    for name in names:
        try:
            chosen = ([], [folders[name]]) if name in folders else ([name], [])
            found[name] = build_tasks(*chosen, root=arguments.root)[0]
        except UserError:
            continue
    return found


def _own_folders(arguments: argparse.Namespace) -> list[str]:
    """The folders of data sets that the runs were evaluated on."""
    from clip_lightning.config import compose

    configs = [path / "config.yaml" for path in (arguments.first, arguments.second)]
    return [folder for file in configs if file.is_file() for folder in compose.read(file).eval.folders]


def _panel(row: dict[Any, Any], task: "ZeroShotTask | None") -> "Disagreement":
    import pandas as pd

    from clip_lightning.plots.disagreements import Disagreement

    def name(number: Any) -> str:
        is_known = task is not None and not pd.isna(number) and 0 <= int(number) < len(task.classnames)
        return task.classnames[int(number)] if task is not None and is_known else f"class {number}"

    image = None
    if task is not None and row["index"] < task.num_samples:
        try:
            image = task.image(int(row["index"]), _PIXELS).permute(1, 2, 0).numpy()
        except UserError:
            image = None
    return Disagreement(
        image,
        f"{row['task']} {row['index']}",
        name(row["label"]),
        name(row["predicted_first"]),
        name(row["predicted_second"]),
        bool(row["correct_first"] >= 0.5),
    )


if __name__ == "__main__":
    run_command(main)
