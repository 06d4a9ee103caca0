"""Named lists of data sets over which figures average: which data sets, and the metric of each.

Every figure names its list in its caption, since an average means nothing without it. A list fixes the metric of each
data set, so that an average over a list may mix metrics, as the paper's do; other averages may not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# The names are those of the columns of Tables 10 and 11 of Radford et al. 2021; metrics are Table 9's.
_MEAN_PER_CLASS = ("FGVCAircraft", "OxfordPets", "Caltech101", "Flowers102")
_OTHER_METRICS = {"VOC2007": "map_11_point", "Kinetics700": "mean_top1_top5", "HatefulMemes": "roc_auc"}
_PAPER_27 = [
    "Food101",
    "CIFAR10",
    "CIFAR100",
    "Birdsnap",
    "SUN397",
    "StanfordCars",
    "FGVCAircraft",
    "VOC2007",
    "DTD",
    "OxfordPets",
    "Caltech101",
    "Flowers102",
    "MNIST",
    "FER2013",
    "STL10",
    "EuroSAT",
    "RESISC45",
    "GTSRB",
    "KITTI",
    "Country211",
    "PCam",
    "UCF101",
    "Kinetics700",
    "CLEVRCounts",
    "HatefulMemes",
    "RenderedSST2",
    "ImageNet",
]
METRIC_NAMES = {
    "acc1": "top-1",
    "acc5": "top-5",
    "mean_per_class": "mean per class",
    "map_11_point": "11-point mAP",
    "mean_top1_top5": "mean(top-1, top-5)",
    "roc_auc": "ROC AUC",
}


@dataclass(frozen=True)
class EvaluationList:
    """Data sets that are averaged together.

    Attributes:
        title: how captions call it.
        metrics: data set -> name of its metric in records.
    """

    title: str
    metrics: dict[str, str]

    @property
    def tasks(self) -> list[str]:
        """The data sets, in the list's order."""
        return list(self.metrics)


def metric_of(dataset: str) -> str:
    """The metric that Table 9 of the paper gives a data set, as records name it."""
    return "mean_per_class" if dataset in _MEAN_PER_CLASS else _OTHER_METRICS.get(dataset, "acc1")


PAPER_27 = EvaluationList("27 data sets of the paper's Tables 9 to 11", {name: metric_of(name) for name in _PAPER_27})
KORNBLITH_12 = EvaluationList(
    "12 data sets of Kornblith et al. 2019", {name: metric_of(name) for name in _PAPER_27[:12]}
)
SCENES = EvaluationList(
    "4 tasks of the embedded scenes",
    dict.fromkeys(("shape", "color", "unseen_combination", "handwritten_digits"), "acc1"),
)
LISTS = {"paper27": PAPER_27, "kornblith12": KORNBLITH_12, "scenes": SCENES}


def known_list(tasks: Sequence[str]) -> EvaluationList | None:
    """The named list that consists of exactly these data sets, if there is one."""
    return next((found for found in LISTS.values() if set(found.tasks) == set(tasks)), None)
