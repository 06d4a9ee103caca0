"""Evaluates a run's checkpoint: rebuilds the model from the run's frozen config, and measures what `eval=` names."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from clip_lightning.config import compose, identity
from clip_lightning.config.schema import Config, EvaluateConfig
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.errors import DataError, UserError
from clip_lightning.evaluation.tasks import build_tasks
from clip_lightning.model.attention import choose_attention
from clip_lightning.records import Record, RecordWriter, read_records, write_parquet
from clip_lightning.reliability import provenance
from clip_lightning.run.console.summary import score_table
from clip_lightning.run.hardware import uses_gpu
from clip_lightning.run.plan.preflight import build_datamodule
from clip_lightning.run.session import evaluators, quiet_libraries
from clip_lightning.tokenizer import load_tokenizer
from clip_lightning.training.saved_model import find_checkpoint, load_model, refuse_targets


def evaluate(config: EvaluateConfig) -> int:
    """Prints and records the scores of a checkpoint; returns the exit code.

    Tasks that are null are the run's own, and then its folders, unless others are named, and its validation pairs are
    measured as well.

    Raises: UserError for what the user can mend.
    """
    quiet_libraries()
    path = Path(config.run).expanduser().resolve()
    frozen = compose.read(path / "config.yaml")
    refuse_targets(frozen, config.allow_target)
    own = config.eval.tasks is None
    if own:
        folders = config.eval.folders or frozen.eval.folders
        config.eval = replace(config.eval, tasks=frozen.eval.tasks, folders=folders)
    frozen.eval = config.eval
    tasks = build_tasks(frozen.eval.tasks or [], frozen.eval.folders)
    checkpoint = find_checkpoint(path, config.checkpoint)
    tokenizer = load_tokenizer(frozen.model.text, path / "tokenizer")
    datamodule = _validation(frozen) if own else None
    if datamodule is not None:
        datamodule.tokenizer = tokenizer
    on_gpu = uses_gpu(config.cluster.accelerator)
    choose_attention(frozen.compute.precision, on_gpu)
    device = torch.device("cuda" if on_gpu else "cpu")
    model = load_model(frozen, checkpoint, config.weights).to(device)
    measured = [
        replace(record, samples_seen=checkpoint.samples_seen, weights="" if config.weights == "raw" else config.weights)
        for evaluator in evaluators(frozen, tasks, datamodule)
        for record in evaluator.run(model, tokenizer, device)
    ]
    if not measured:
        raise UserError("eval: there is nothing to evaluate; write eval.tasks=[NAME,...] or eval.folders=[DIR,...]")
    _write(path, frozen, measured)
    print(f"{path.name} after {checkpoint.samples_seen:,} samples ({checkpoint.path})\n{score_table(measured)}")
    return 0


def _validation(config: Config) -> ContrastiveDataModule | None:
    """The run's held-out pairs; None, with a line that says so, where its data is not on this machine."""
    if not config.data.validation.num_samples:
        return None
    try:
        return build_datamodule(config)
    except DataError as error:
        print(f"without validation pairs: {error.problems[0]}")
        return None


def _write(path: Path, config: Config, measured: list[Record]) -> None:
    file = path / "evaluation.jsonl"
    writer = RecordWriter(
        file,
        run=path.name,
        model=identity.model_name(config),
        data=config.data.name,
        science=identity.science_hash(config),
        versions=provenance.versions_line(provenance.versions()),
    )
    with closing(writer):
        writer.write(measured)
    write_parquet(read_records(file), file.with_suffix(".parquet"))
