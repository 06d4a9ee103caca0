"""Predictions on every image of a test set, for paired comparisons: `predictions.parquet` in a run's directory."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_lightning.evaluation.counts import UNIT
from clip_lightning.evaluation.tasks import ZeroShotTask

FILE = "predictions.parquet"
SCHEMA = pa.schema(
    {
        "task": pa.string(),
        "split": pa.string(),
        "prompts": pa.string(),
        "index": pa.int64(),  # of the image in the task
        "key": pa.string(),  # the image's name where the data set has names, otherwise its index
        "label": pa.int64(),  # -1 where an image may have any number of labels
        "predicted": pa.int64(),
        "correct": pa.float64(),  # share of a hit: below 1 where several classes share the best logit
        "probability": pa.float64(),  # of the correct class, at the model's scale
    }
)


def prediction_table(task: ZeroShotTask, rows: Mapping[str, np.ndarray]) -> pa.Table:
    """A row per image that was evaluated, in the order of the images.

    Args: rows: the gathered columns of `metrics.ImageRows`.
    """
    index = rows["index"]
    num = len(index)
    columns = {
        "task": np.full(num, task.name),
        "split": np.full(num, task.split),
        "prompts": np.full(num, task.prompts),
        "index": index,
        "key": index.astype(str),
        "label": rows["label"],
        "predicted": rows["predicted"],
        "correct": rows["first"] / UNIT,
        "probability": rows["probability"].astype(np.float64),
    }
    return pa.table(columns, schema=SCHEMA)


def kept(evaluators: Iterable[object]) -> list[pa.Table]:
    """The tables that the evaluators have kept in their last run."""
    return [table for evaluator in evaluators for table in getattr(evaluator, "predictions", ())]


def write_predictions(tables: Sequence[pa.Table], folder: Path, **about: object) -> Path:
    """Writes the file of a run, complete or not at all, in place of an older one.

    Args: about: what the predictions were made with (samples_seen, weights_hash), kept as the file's metadata.
    """
    path = folder / FILE
    temporary = path.with_name(path.name + ".tmp")
    whole = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    pq.write_table(whole.replace_schema_metadata({key: str(value) for key, value in about.items()}), temporary)
    temporary.replace(path)
    return path
