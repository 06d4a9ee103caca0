"""Reads the results file of imagenet-testbed (Taori et al. 2020): accuracies of models on ImageNet and its shifts."""

from pathlib import Path

import pandas as pd

from clip_lightning.errors import UserError
from clip_lightning.formatting import listed
from clip_lightning.plots.robustness import MORE_DATA, ROBUST, STANDARD, ZERO_SHOT

# A shift -> its column or columns (of pm-0 and pm-10 the mean), and the column of ImageNet on its classes.
SHIFTS = {
    "ImageNetV2": (["imagenetv2-matched-frequency"], "val"),
    "ImageNet-A": (["imagenet-a"], "val-on-imagenet-a-classes"),
    "ImageNet-R": (["imagenet-r"], "val-on-imagenet-r-classes"),
    "ObjectNet": (["objectnet-1.0-beta"], "val-on-objectnet-classes"),
    "ImageNet Sketch": (["imagenet-sketch"], "val"),
    "ImageNet-Vid": (["imagenet-vid-robust_pm0", "imagenet-vid-robust_pm10"], "val-on-vid-robust-classes"),
    "Youtube-BB": (["ytbb-robust_pm0", "ytbb-robust_pm10"], "val-on-ytbb-robust-classes"),
}
_GROUPS = {"STANDARD": STANDARD, "ROBUST_INTV": ROBUST, "LP_ADV": ROBUST, "MORE_DATA": MORE_DATA}
_TYPES = ("nat_model_type", "model_type")
# Names of models that the testbed's own fits leave out: subsets of ImageNet, another source, another batch size.
_LEFT_OUT = "subsample|aws|batch64"
# The testbed's name of He et al.'s original ResNet-101, the one of the paper's Figure 13.
RESNET101 = "cafferesnet101"


def read_testbed(path: Path) -> pd.DataFrame:
    """One row per model that has every shift: model, group, accuracy, shifted (means over the shifts, fractions).

    Models of other groups, such as those of low accuracy, are left out.

    Raises: UserError where the file is missing or lacks a column.
    """
    if not path.is_file():
        raise UserError(f"--testbed={path} does not exist; name the results file of imagenet-testbed, a CSV.")
    rows = pd.read_csv(path)
    columns = [column for names, reference in SHIFTS.values() for column in (*names, reference)]
    missing = [name for name in dict.fromkeys(["model", *columns]) if name not in rows]
    kind = next((name for name in _TYPES if name in rows), None)
    if missing or kind is None:
        raise UserError(
            f"--testbed={path} lacks the columns {listed(missing or _TYPES)}; it must be a results file of "
            "imagenet-testbed with the type of each model."
        )
    shifted = pd.DataFrame({name: rows[names].mean(axis=1, skipna=False) for name, (names, _) in SHIFTS.items()})
    accuracy = pd.DataFrame({name: rows[reference] for name, (_, reference) in SHIFTS.items()})
    found = pd.DataFrame(
        {
            "model": rows.model,
            "group": rows[kind].map(_GROUPS).mask(rows.model.str.contains("clip_zeroshot"), ZERO_SHOT),
            "accuracy": accuracy.mean(axis=1, skipna=False) / 100,
            "shifted": shifted.mean(axis=1, skipna=False) / 100,
        }
    )
    return found[~rows.model.str.contains(_LEFT_OUT)].dropna().reset_index(drop=True)
