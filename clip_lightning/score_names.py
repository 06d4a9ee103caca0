"""Leaf: which quantities are scores of a task, and how tasks are named for people. Imports nothing."""

# The accuracies of a task; and its own metric, where it has another.
SCORES = ("acc1", "acc5", "mean_per_class")
OWN_METRICS = (
    "map11",
    "top1_top5_mean",
    "roc_auc",
    "pm",
    "macro_f1",
    "worst_group_acc1",
    "worst_group_acc5",
    "jaccard",
    "caption_accuracy",
    "group_score",
)


def task_name(task: str, weights: str) -> str:
    """A task as it is shown: of the average of weights, not those of training, `task (ema)`."""
    return f"{task} ({weights})" if weights else task


def is_share(what: str) -> bool:
    """Whether a quantity of an evaluation is a fraction of 1, which people read in percent."""
    return what in (*SCORES, *OWN_METRICS) or "recall_at_" in what
