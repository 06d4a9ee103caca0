"""Runs evaluators one after the other; one that cannot measure is reported and skipped."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import torch

from clip_lightning.distributed import exchange
from clip_lightning.errors import AgreedError, UserError
from clip_lightning.evaluation.weights_hash import weights_hash
from clip_lightning.model.clip import CLIP
from clip_lightning.records import Record
from clip_lightning.tokenizer import Tokenizer


class Evaluator(Protocol):
    """Gives records of a model, the same on every rank. It may have a `name`, for messages."""

    def run(self, model: CLIP, tokenizer: Tokenizer, device: torch.device) -> list[Record]:
        """Measures the model; the model and every random state are unchanged afterwards."""


def measure(
    evaluators: Iterable[Evaluator],
    model: CLIP,
    tokenizer: Tokenizer,
    device: torch.device,
    report: Callable[[str], None],
) -> list[Record]:
    """The records of all evaluators, with the hash of the weights and this rank's seconds. To be called on all ranks.

    An evaluator that raises UserError or OSError on any rank has no records, and `report` gets a sentence about it. A
    rank must raise before its evaluator's first collective, or all ranks must raise: the others would wait for it.
    Raises AgreedError, as for a model whose features are NaN: then nothing can be measured.
    """
    evaluators = list(evaluators)
    weights = weights_hash([model]) if evaluators else ""
    records = []
    for evaluator in evaluators:
        begin, problem = time.perf_counter(), ""
        found: list[Record] = []
        try:
            found = evaluator.run(model, tokenizer, device)
        except AgreedError:
            raise
        except (UserError, OSError) as error:
            problem = " ".join(str(error).split())
        if problems := [other for other in exchange(problem) if other]:
            report(f"warning: {name_of(evaluator)} was not evaluated: {problems[0]}")
            continue
        seconds = time.perf_counter() - begin
        records += [replace(record, seconds=seconds, weights_hash=weights) for record in found]
    return records


def name_of(evaluator: Evaluator) -> str:
    """The evaluator in messages."""
    return str(getattr(evaluator, "name", type(evaluator).__name__))
