"""WiSE-FT: the weights between two checkpoints of one architecture, and the accuracy along the way.

`python -m experiments.studies.wise_ft BEFORE AFTER --tasks NAME... --out DIR` evaluates (1 - alpha) x BEFORE +
alpha x AFTER for each alpha, writes `wise_ft.csv` and `wise_ft.png`. Either is a run or what `model.pretrained` takes.
Source: Wortsman et al., "Robust fine-tuning of zero-shot models" (2022, arXiv 2109.01903), equation 1.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_lightning.errors import UserError, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.studies.wise_ft", description="Interpolate two models."
    )
    parser.add_argument("before", help="the model before fine-tuning: a run, or a source of model.pretrained")
    parser.add_argument("after", help="the fine-tuned model, of the same architecture")
    parser.add_argument("--tasks", nargs="*", default=[], help="registered tasks")
    parser.add_argument("--folders", nargs="*", default=[], help="folders in CLIP_benchmark's layout")
    parser.add_argument(
        "--alphas", nargs="+", type=float, default=[0, 0.25, 0.5, 0.75, 1], help="shares of AFTER, 0..1"
    )
    parser.add_argument("--batch", type=int, default=256, help="images in a forward pass")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the table and the figure")
    arguments = parser.parse_args(argv)
    if wrong := [alpha for alpha in arguments.alphas if not 0 <= alpha <= 1]:
        raise UserError(f"--alphas {wrong[0]:g} is outside of 0 .. 1, the range between the two models")
    if not arguments.tasks and not arguments.folders:
        raise UserError("there is nothing to evaluate; write --tasks NAME... or --folders DIR...")
    measure(arguments)
    return 0


def measure(arguments: argparse.Namespace) -> None:
    """Evaluates every alpha; writes table and figure. Raises UserError where the models differ in a name or shape."""
    import pandas as pd
    import torch

    from clip_lightning.data.images.decode import Resize
    from clip_lightning.evaluation.tasks import build_tasks
    from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
    from clip_lightning.training.any_model import open_model

    before, after = open_model(arguments.before), open_model(arguments.after)
    ends = before.model.state_dict(), after.model.state_dict()
    check_alike(*ends)
    vision, rows = after.config.vision, []
    resize = Resize(vision.resize, vision.interpolation)
    evaluators = []
    for task in build_tasks(arguments.tasks, arguments.folders):
        resized = replace(task, resize=resize)
        evaluators.append(ZeroShotEvaluator(resized, vision.image_size, batch=arguments.batch))
    for alpha in sorted(set(arguments.alphas)):
        after.model.load_state_dict(interpolated(*ends, alpha))
        for evaluator in evaluators:
            records = evaluator.run(after.model, after.tokenizer, torch.device("cpu"))
            rows += [vars(record) | {"alpha": alpha} for record in records if record.what == "acc1"]
    table = pd.DataFrame(rows)[["alpha", "task", "value", "low", "high", "n"]]
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "wise_ft.csv", index=False)
    draw(table, folder / "wise_ft.png")
    print(table.to_string(index=False))


def check_alike(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raises UserError with the first name or shape in which two state dicts differ."""
    if differing := sorted(before.keys() ^ after.keys()):
        raise UserError(f"the two models are of other architectures: only one of them has {differing[0]}")
    for name in before:
        if before[name].shape != after[name].shape:
            raise UserError(f"the two models are of other architectures: {name} has another shape")


def interpolated(before: Mapping[str, Any], after: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """(1 - alpha) x before + alpha x after of every tensor of numbers; counters are those of `after`.

    The ends are the models themselves, bit by bit.
    """
    if alpha in (0, 1):
        return dict(after if alpha else before)
    return {
        name: value.lerp(after[name], alpha) if value.is_floating_point() else after[name]
        for name, value in before.items()
    }


def draw(table: Any, path: Path) -> None:
    """Accuracy with its 95 % interval over alpha, a line for each task."""
    from matplotlib.ticker import PercentFormatter

    from clip_lightning.plots.style import figure

    with figure(5, 3.4) as drawn:
        axes = drawn.subplots()
        for task, rows in table.groupby("task"):
            ends = [rows.value - rows.low, rows.high - rows.value]
            axes.errorbar(rows.alpha, rows.value, ends, marker="o", ms=4, capsize=2, label=task)
        axes.set_xlabel("alpha, share of the fine-tuned weights")
        axes.set_ylabel("zero-shot accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend()
    drawn.savefig(path)


if __name__ == "__main__":
    run_command(main)
