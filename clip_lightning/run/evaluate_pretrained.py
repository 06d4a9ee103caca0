"""Evaluates another library's model without a run: `python evaluate.py pretrained=SOURCE eval.tasks=[NAME]`.

Counts and records are as of a run; they are appended to `evaluation.jsonl` in `runs/pretrained-NAME`.
"""

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from clip_lightning.config.schema import EvaluateConfig, VisionConfig
from clip_lightning.data.images.decode import Resize
from clip_lightning.distributed import rank_and_world
from clip_lightning.errors import UserError
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.tasks import ZeroShotTask, build_tasks, warnings_of
from clip_lightning.evaluation.zero_shot import ZeroShotEvaluator
from clip_lightning.records import Record, RecordWriter, read_records, write_parquet
from clip_lightning.reliability import provenance
from clip_lightning.reliability.out_of_memory import out_of_memory_as
from clip_lightning.run.console.summary import score_table
from clip_lightning.run.process_rank import rank_of_process
from clip_lightning.run.ranks import ranks
from clip_lightning.training.any_model import open_model


def evaluate_pretrained(config: EvaluateConfig) -> int:
    """Prints and records the scores of `pretrained`; returns the exit code.

    Raises: UserError: no such model, or no task is named: it has no data of its own.
    """
    assert config.pretrained is not None
    tasks = build_tasks(config.eval.tasks or [], config.eval.folders)
    if not tasks:
        raise UserError("pretrained= has no tasks of its own; write eval.tasks=[NAME,...] or eval.folders=[DIR,...]")
    opened = open_model(config.pretrained)
    if rank_of_process() == 0:
        print("".join(f"{line}\n" for line in warnings_of(tasks)), end="", flush=True)
    with ranks(config.cluster) as device:
        model = opened.model.to(device)
        does_not_fit = f"an evaluation does not fit into the memory of {device}: lower eval.batch={config.eval.batch}"
        with out_of_memory_as(does_not_fit):
            measured = [
                record
                for evaluator in _evaluators(tasks, opened.config.vision, config.eval.batch)
                for record in evaluator.run(model, opened.tokenizer, device)
            ]
        if rank_and_world()[0] == 0:
            folder = _write(config, measured)
            print(f"{config.pretrained} ({folder})\n{score_table(measured)}")
    return 0


def _evaluators(tasks: list[ZeroShotTask], vision: VisionConfig, batch: int) -> list[ZeroShotEvaluator]:
    resize, budget = Resize(vision.resize, vision.interpolation), MemoryBudget()
    resized = [replace(task, resize=resize) for task in tasks]
    return [ZeroShotEvaluator(task, vision.image_size, batch=batch, budget=budget) for task in resized]


def _write(config: EvaluateConfig, measured: list[Record]) -> Path:
    name = "pretrained-" + re.sub(r"[^\w.+-]+", "_", str(config.pretrained)).strip("_")
    folder = Path(config.runs) / name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "evaluation.jsonl"
    versions = provenance.versions_line(provenance.versions())
    with closing(RecordWriter(file, run=name, model=str(config.pretrained), versions=versions)) as writer:
        writer.write(measured)
    write_parquet(read_records(file), file.with_suffix(".parquet"))
    return folder
