"""What training passes to the end of a run."""

from collections import Counter
from dataclasses import dataclass

from clip_lightning.evaluation.predictions import Prediction


@dataclass(frozen=True)
class Outcome:
    """Where a run ended.

    Attributes:
        stopped_by: callbacks that stopped training; a run that they stop is finished.
        seconds: of all starts together.
        bad_samples: number by cause, of all ranks, in this start.
        shown, retrieved: example predictions and held-out pairs of a finished run.
    """

    samples_seen: int
    is_finished: bool
    stopped_by: str
    seconds: float
    bad_samples: Counter[str]
    shown: list[Prediction]
    retrieved: list[Prediction]
