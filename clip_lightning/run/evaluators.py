"""What a run is measured on: the tasks that its config names and that are on this node, and their evaluators."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from clip_lightning.config.schema import Config, EvalConfig, VisionConfig
from clip_lightning.data.datamodule import Batch, ContrastiveDataModule
from clip_lightning.data.images.decode import Resize
from clip_lightning.distributed import exchange
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.classifier import ClassifierBuilder
from clip_lightning.evaluation.measure import Evaluator
from clip_lightning.evaluation.pair_tasks import PairTask, build_pair_task, is_pair_task, pair_evaluator
from clip_lightning.evaluation.retrieval import RetrievalEvaluator
from clip_lightning.evaluation.suite import SUITES
from clip_lightning.evaluation.tasks import ZeroShotTask, build_tasks, warnings_of
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
from clip_lightning.run.process_rank import rank_of_process

RETRIEVAL = "retrieval"  # the suite whose tasks are no classification
_Task = TypeVar("_Task", bound=ZeroShotTask | PairTask)


@dataclass(frozen=True)
class FoundTasks:
    """The tasks of a config on this node.

    Attributes:
        pairs: tasks of images and captions.
        missing: of the suites' data sets those that cannot be measured here, and why.
    """

    zero_shot: list[ZeroShotTask] = field(default_factory=list)
    pairs: list[PairTask] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """Sentences about the tasks, among them one line with all data sets that are missing."""
        found = warnings_of(self.zero_shot)
        if self.missing:
            number = len(self.zero_shot) + len(self.pairs)
            found.append(
                f"warning: {len(self.missing)} data sets of the suite are not measured, and {number} tasks are: "
                f"{', '.join(self.missing)}; `python -m clip_lightning.evaluation.tasks` shows why"
            )
        return found

    def __bool__(self) -> bool:
        return bool(self.zero_shot or self.pairs)


def find_tasks(evaluation: EvalConfig) -> FoundTasks:
    """The tasks that are named, and of each suite the data sets that are there.

    Raises UserError: a named task is missing or wrong, there is no such suite, or suites have no data set here.
    """
    chosen = [name for name, is_on in evaluation.suites.items() if is_on]
    problems = [
        f"eval.suites.{name}: there is no such suite; there are {', '.join(SUITES)}"
        for name in chosen
        if name not in SUITES
    ]
    names = evaluation.tasks or []
    try:
        pairs = [build_pair_task(name, evaluation.root) for name in names if is_pair_task(name)]
        named = build_tasks([n for n in names if not is_pair_task(n)], evaluation.folders, evaluation.root)
    except UserError as error:
        kind = DataError if isinstance(error, DataError) and not problems else UserError
        raise kind(*problems, *error.problems) from error
    if problems:
        raise UserError(*problems)
    found = FoundTasks(named, pairs)
    taken = [task.name for task in (*named, *pairs)]
    for suite in chosen:
        for name in SUITES[suite]:
            if name in taken:
                continue
            taken.append(name)
            try:
                if suite == RETRIEVAL:
                    found.pairs.append(build_pair_task(name, evaluation.root))
                else:
                    found.zero_shot.extend(build_tasks([name], (), evaluation.root))
            except (UserError, OSError) as error:
                found.missing[name] = " ".join(str(error).split())
    if chosen and len(found.missing) == len(taken):
        first = next(iter(found.missing.values()))
        where = f"eval.root={Path(evaluation.root).expanduser()}" if evaluation.root else "eval.root is not set"
        raise UserError(f"eval={','.join(chosen)}: none of its data sets is here ({where}); the first: {first}")
    return found


def build_evaluators(
    config: Config,
    tasks: FoundTasks,
    data: ContrastiveDataModule | None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Evaluator]:
    """An evaluator for all tasks on the same images, one for each retrieval task, and one of the validation pairs where
    there are any. To be called on every rank, once they are connected.

    Args: report: gets a sentence about tasks that not every rank has, which are left out.
    """
    precision, budget = config.compute.precision, MemoryBudget()
    found = task_evaluators(tasks, config.eval, config.model.vision, precision, report, budget)
    if data is not None and data.num_validation:
        pairs = _ValidationBatches(data)
        found.append(RetrievalEvaluator(pairs, batch=config.eval.batch, precision=precision, budget=budget))
    return found


def task_evaluators(
    tasks: FoundTasks,
    evaluation: EvalConfig,
    vision: VisionConfig,
    precision: str,
    report: Callable[[str], None],
    budget: MemoryBudget,
) -> list[Evaluator]:
    """The evaluators of the tasks that all ranks have, for a model with this image tower."""
    classifiers = ClassifierBuilder(evaluation.batch)
    resize = Resize(vision.resize, vision.interpolation)
    groups: dict[str, list[ZeroShotTask]] = {}
    for task in _on_all_ranks(tasks.zero_shot, report):
        groups.setdefault(task.images_id or f"task {task.name}", []).append(replace(task, resize=resize))
    found: list[Evaluator] = [
        ZeroShotEvaluator(
            group,
            vision.image_size,
            batch=evaluation.batch,
            precision=precision,
            budget=budget,
            classifiers=classifiers,
            prompt_sets=evaluation.prompt_sets,
            keep_predictions=evaluation.keep_predictions,
        )
        for group in groups.values()
    ]
    found += [
        pair_evaluator(
            replace(task, resize=resize),
            vision.image_size,
            batch=evaluation.batch,
            precision=precision,
            budget=budget,
        )
        for task in _on_all_ranks(tasks.pairs, report)
    ]
    return found


def report_on_rank_zero(*lines: str) -> None:
    """Prints lines, on rank 0 alone."""
    if rank_of_process() == 0:
        print("".join(f"{line}\n" for line in lines), end="", flush=True)


def reporting() -> tuple[list[str], Callable[[str], None]]:
    """The problems of an evaluation so far, the same on every rank, and what adds one and prints it on rank 0."""
    problems: list[str] = []

    def report(line: str) -> None:
        problems.append(line)
        report_on_rank_zero(line)

    return problems, report


def _on_all_ranks(tasks: Sequence[_Task], report: Callable[[str], None]) -> list[_Task]:
    """The tasks that every rank has found, with as many images: a node may lack a data set that others have."""
    found = exchange([(task.name, task.num_samples) for task in tasks])
    common = [key for key in found[0] if all(key in of_rank for of_rank in found)]
    if lacking := sorted({name for of_rank in found for name, num in of_rank if (name, num) not in common}):
        report(f"warning: not every node has the same images of {', '.join(lacking)}, which are not measured")
    by_key = {(task.name, task.num_samples): task for task in tasks}
    return [by_key[key] for key in common]


class _ValidationBatches:
    """This rank's validation batches; the loader is made when the rank is known."""

    def __init__(self, data: ContrastiveDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.data.val_dataloader())
