"""The numbers that Radford et al. 2021 printed, as tidy tables of fractions.

The files in paper/ hold them as printed, each with its source in its first line. Images of a data set are those of
Table 9; ImageNet's seven shifts have the sizes of their published test sets.
"""

from functools import cache
from pathlib import Path

import pandas as pd

from experiments.figures.evaluation_lists import metric_of
from experiments.figures.scores import table

FOLDER = Path(__file__).with_name("paper")
CLIP = "ViT-L/14-336px"
RESNET50 = "ResNet-50"
NOISY_STUDENT = "EfficientNet-NoisyStudent-L2-800"
_NAME = "CLIP-"  # before the name of a CLIP model in Table 10
# Images of the test sets, of the two video sets anchor frames (Taori et al. 2020).
SHIFT_SIZES = {
    "ImageNet": 50_000,
    "ImageNetV2": 10_000,
    "ImageNet-A": 7_500,
    "ImageNet-R": 30_000,
    "ObjectNet": 18_574,
    "ImageNet Sketch": 50_889,
    "ImageNet-Vid": 1_109,
    "Youtube-BB": 2_530,
}
# The names in the paper's tables.
SHIFT_NAMES = dict(
    zip(("IN", "IN-V2", "IN-A", "IN-R", "ObjectNet", "IN-Sketch", "IN-Vid", "YTBB"), SHIFT_SIZES, strict=True)
)
SHIFT_NAMES["ImageNet"] = "ImageNet"


def read(name: str) -> pd.DataFrame:
    """A file of paper/ as printed; the lines with its source are left out."""
    return pd.read_csv(FOLDER / f"{name}.csv", comment="#", keep_default_na=False, na_values=[""])


def source(name: str) -> str:
    """The first line of a file of paper/: what it was copied from."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8") as file:
        return file.readline().removeprefix("# ").strip()


@cache
def sizes() -> dict[str, int]:
    """Test images of each of the 27 data sets (Table 9)."""
    rows = read("table9")
    return dict(zip(rows.dataset, rows.test.astype(int), strict=True))


def linear_probe() -> pd.DataFrame:
    """Table 10 as a tidy table: 66 models, 27 data sets."""
    known = read("models").set_index("model")
    rows = _tidy(read("table10"), "linear_probe", "")
    return rows.assign(family=rows.model.map(known.family), gflops=rows.model.map(known.gflops))


def zero_shot() -> pd.DataFrame:
    """Table 11 as a tidy table: 9 CLIP models, 27 data sets; `gflops` of the ResNets is Figure 9's."""
    known = read("models").set_index("model")
    rows = _tidy(read("table11").drop(columns="figure9_gflops"), "zero_shot", "paper")
    names = _NAME + rows.model
    return rows.assign(family=names.map(known.family), gflops=names.map(known.gflops))


def shifts() -> pd.DataFrame:
    """Table 16 as a tidy table: 4 models, ImageNet and its seven shifts; of pm-0 and pm-10 the mean."""
    rows = read("table16")
    for video in ("IN-Vid", "YTBB"):
        rows[video] = (rows[f"{video}_PM0"] + rows[f"{video}_PM10"]) / 2
    long = (
        rows[["model", *(name for name in SHIFT_NAMES if name in rows)]]
        .melt("model", var_name="task", value_name="value")
        .replace({"task": SHIFT_NAMES})
    )
    return table(
        {
            "model": row.model,
            "task": row.task,
            "method": "zero_shot" if row.model.startswith("Zero-Shot") else "supervised",
            "metric": "acc1",
            "value": row.value / 100,
            "n": SHIFT_SIZES[row.task],
            "split": "test",
            "prompts": "paper" if row.model.startswith("Zero-Shot") else "",
        }
        for row in long.itertuples()
    )


def _tidy(wide: pd.DataFrame, method: str, prompts: str) -> pd.DataFrame:
    long = wide.melt("model", var_name="task", value_name="value")
    return table(
        {
            "model": row.model,
            "task": row.task,
            "method": method,
            "metric": metric_of(row.task),
            "value": row.value / 100,
            "n": sizes()[row.task],
            "split": "test",
            "prompts": prompts,
        }
        for row in long.itertuples()
    )
