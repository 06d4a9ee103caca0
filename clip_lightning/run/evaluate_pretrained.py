"""Evaluates another library's model without a run: `python evaluate.py pretrained=SOURCE eval.tasks=[NAME]`.

Counts and records are as of a run; they are appended to `evaluation.jsonl` in `runs/pretrained-NAME`.
"""

import re
from contextlib import closing
from pathlib import Path

from clip_lightning.config.schema import EvaluateConfig
from clip_lightning.distributed import rank_and_world
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.cache import MemoryBudget
from clip_lightning.evaluation.measure import measure
from clip_lightning.evaluation.prediction_table import kept, write_predictions
from clip_lightning.records import Record, RecordWriter, read_records, write_parquet
from clip_lightning.reliability import provenance
from clip_lightning.reliability.out_of_memory import out_of_memory_as
from clip_lightning.run.console.summary import note_lines, score_table
from clip_lightning.run.evaluators import find_tasks, report_on_rank_zero, reporting, task_evaluators
from clip_lightning.run.ranks import ranks
from clip_lightning.training.any_model import open_model


def evaluate_pretrained(config: EvaluateConfig) -> int:
    """Prints and records the scores of `pretrained`; returns the exit code.

    Raises: UserError: no such model, or no task is named: it has no data of its own.
    """
    assert config.pretrained is not None
    tasks = find_tasks(config.eval)
    if not tasks:
        raise UserError(
            "pretrained= has no tasks of its own; write eval.tasks=[NAME,...], eval.folders=[DIR,...] or a suite like "
            "eval=quick eval.root=DIR"
        )
    opened = open_model(config.pretrained)
    report_on_rank_zero(*tasks.warnings)
    with ranks(config.cluster) as device:
        model = opened.model.to(device)
        does_not_fit = f"an evaluation does not fit into the memory of {device}: lower eval.batch={config.eval.batch}"
        with out_of_memory_as(does_not_fit):
            broken, report = reporting()
            evaluators = task_evaluators(tasks, config.eval, opened.config.vision, "fp32", report, MemoryBudget())
            measured = measure(evaluators, model, opened.tokenizer, device, report)
        if rank_and_world()[0] == 0:
            folder = _write(config, measured)
            if config.eval.keep_predictions:
                print(f"predictions: {write_predictions(kept(evaluators), folder)}")
            lines = [f"{config.pretrained} ({folder})", score_table(measured), *note_lines(measured)]
            print("\n".join(lines))
    return DataError.exit_code if broken else 0


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
