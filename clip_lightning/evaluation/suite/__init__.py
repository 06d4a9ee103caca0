"""Data sets of the evaluation suites: one YAML file per set beside this module, and the suites as lists of names.

Names are of classification tasks (`evaluation.tasks.build_tasks`), but for `retrieval`, whose tasks are made by
`evaluation.retrieval_tasks`; DataComp's 38 are `datacomp38` and `retrieval` together.
"""

from collections.abc import Mapping

PAPER36 = (
    "food101",
    "sun397",
    "youtube_bb",
    "eurosat",
    "pcam",
    "imagenet_a",
    "cifar10",
    "clevr_count",
    "fer2013",
    "ucf101",
    "caltech101",
    "imagenet_r",
    "oxford_pets",
    "imagenet_v2",
    "cifar100",
    "fgvc_aircraft",
    "country211",
    "resisc45",
    "stanford_cars",
    "sun723",
    "kinetics700",
    "flowers102",
    "imagenet",
    "birdsnap",
    "ayahoo",
    "objectnet",
    "imagenet_blurry",
    "dtd",
    "voc2007",
    "mnist",
    "svhn_numbers",
    "imagenet_vid",
    "imagenet_sketch",
    "hateful_memes",
    "rendered_sst2",
    "gtsrb",
)  # the panels of Figure 21 of Radford et al. 2021, in their order
TABLE11_ONLY = ("stl10", "kitti_distance")  # of the 27 sets of Table 11, not in Figure 21

DATACOMP36 = (
    "caltech101",
    "cifar10",
    "cifar100",
    "clevr_count",
    "clevr_distance",
    "country211",
    "dtd",
    "eurosat",
    "fgvc_aircraft",
    "food101",
    "gtsrb",
    "imagenet",
    "imagenet_sketch",
    "imagenet_v2",
    "imagenet_a",
    "imagenet_o",
    "imagenet_r",
    "kitti_distance",
    "mnist",
    "objectnet",
    "flowers102",
    "oxford_pets",
    "voc2007_crops",
    "pcam",
    "rendered_sst2",
    "resisc45",
    "stanford_cars",
    "stl10",
    "sun397",
    "svhn",
    "iwildcam",
    "camelyon17",
    "fmow",
    "dollar_street",
    "geode",
    "winogavil",
)  # Gadre et al. 2023, appendix N, without the retrieval tasks Flickr30k and COCO

IMAGENET_SHIFTS = (
    "imagenet_v2",
    "imagenet_a",
    "imagenet_r",
    "imagenet_sketch",
    "objectnet",
    "imagenet_vid",
    "youtube_bb",
)  # Figure 13 of Radford et al. 2021

VTAB = (
    "caltech101",
    "cifar100",
    "dtd",
    "flowers102",
    "oxford_pets",
    "sun397",
    "svhn",
    "eurosat",
    "resisc45",
    "pcam",
    "clevr_count",
    "clevr_distance",
    "kitti_distance",
)  # Zhai et al. 2019, the sets of its 19 tasks for which class names were published

QUICK = ("cifar10", "cifar100", "dtd", "oxford_pets", "imagenet_v2")

RETRIEVAL = ("flickr30k", "coco")

SUITES: Mapping[str, tuple[str, ...]] = {
    "paper36": PAPER36,
    "datacomp38": DATACOMP36,
    "vtab": VTAB,
    "imagenet_shifts": IMAGENET_SHIFTS,
    "quick": QUICK,
    "retrieval": RETRIEVAL,
}
