"""Evaluates a run's checkpoint: rebuilds the model from the run's directory, and measures what `eval=` names.

Several processes share the images, the prompts and the pairs; every one holds the whole model, whatever the strategy
of training. Counts and records are those of one process.
"""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from clip_lightning.config import compose, identity
from clip_lightning.config.schema import Config, EvalConfig, EvaluateConfig
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.distributed import exchange, rank_and_world
from clip_lightning.errors import AgreedError, DataError, UserError
from clip_lightning.evaluation.measure import measure
from clip_lightning.evaluation.prediction_table import kept, write_predictions
from clip_lightning.model.attention import choose_attention
from clip_lightning.records import Record, RecordWriter, read_records, write_parquet
from clip_lightning.reliability import provenance
from clip_lightning.reliability.out_of_memory import out_of_memory_as
from clip_lightning.run.console.summary import note_lines, score_table
from clip_lightning.run.evaluate_pretrained import evaluate_pretrained
from clip_lightning.run.evaluators import build_evaluators, find_tasks, report_on_rank_zero, reporting
from clip_lightning.run.plan.preflight import build_datamodule
from clip_lightning.run.ranks import ranks
from clip_lightning.run.trainer import quiet_libraries
from clip_lightning.tokenizer import Tokenizer, load_tokenizer
from clip_lightning.training.saved_model import (
    TOKENIZER,
    config_of_saved,
    find_checkpoint,
    load_model,
    refuse_targets,
)


def evaluate(config: EvaluateConfig) -> int:
    """Prints and records the scores of a checkpoint; returns the exit code.

    Tasks that are null are the run's own, and then its folders, unless others are named, and its validation pairs are
    measured as well.

    Raises: UserError for what the user can fix.
    """
    quiet_libraries()
    if config.pretrained is not None:
        return evaluate_pretrained(config)
    path = Path(str(config.run)).expanduser().resolve()
    frozen = compose.read(path / "config.yaml")
    refuse_targets(frozen, config.allow_target)
    own = config.eval.tasks is None and not any(config.eval.suites.values())
    frozen.eval = config.eval = _of_run(config.eval, frozen.eval, own)
    tasks = find_tasks(frozen.eval)
    checkpoint = find_checkpoint(path, config.checkpoint)
    saved = config_of_saved(frozen, path)
    tokenizer = load_tokenizer(saved.model.text, path / TOKENIZER)
    datamodule = _validation(saved, tokenizer) if own else None
    if not tasks and datamodule is None:
        raise UserError(
            "eval: there is nothing to evaluate; write eval.tasks=[NAME,...], eval.folders=[DIR,...] or a suite like "
            "eval=quick eval.root=DIR"
        )
    report_on_rank_zero(*tasks.warnings)
    with ranks(config.cluster) as device:
        choose_attention(frozen.compute.precision, device.type == "cuda")
        # A run that still trains may have saved a newer checkpoint since rank 0 looked.
        checkpoint = find_checkpoint(path, exchange(str(checkpoint.path))[0])
        model = load_model(saved, checkpoint, config.weights).to(device)
        if not all(exchange(datamodule is not None)):  # not on every node
            datamodule = None
        weights = "" if config.weights == "raw" else config.weights
        does_not_fit = f"an evaluation does not fit into the memory of {device}: lower eval.batch={config.eval.batch}"
        try:
            with out_of_memory_as(does_not_fit):
                broken, report = reporting()
                evaluators = build_evaluators(saved, tasks, datamodule, report)
                measured = [
                    replace(record, samples_seen=checkpoint.samples_seen, weights=weights)
                    for record in measure(evaluators, model, tokenizer, device, report)
                ]
        except AgreedError as error:
            if rank_and_world()[0] == 0:
                raise
            return error.exit_code  # rank 0 reports it
        if rank_and_world()[0] == 0:
            _write(path, frozen, measured)
            if config.eval.keep_predictions:
                about = {"samples_seen": checkpoint.samples_seen, "weights": config.weights}
                print(f"predictions: {write_predictions(kept(evaluators), path, **about)}")
            found = f"{path.name} after {checkpoint.samples_seen:,} samples ({checkpoint.path})"
            print("\n".join([found, score_table(measured), *note_lines(measured)]))
    return DataError.exit_code if broken else 0


def _of_run(asked: EvalConfig, of_run: EvalConfig, own: bool) -> EvalConfig:
    """What is evaluated: the run's own tasks where none are named, and its folder of data sets unless another is."""
    asked = replace(asked, root=asked.root or of_run.root)
    if not own:
        return asked
    return replace(asked, tasks=of_run.tasks, suites=of_run.suites, folders=asked.folders or of_run.folders)


def _validation(config: Config, tokenizer: Tokenizer) -> ContrastiveDataModule | None:
    """The run's held-out pairs; None, with a line about it, where its data cannot be read on this node."""
    if not config.data.validation.num_samples:
        return None
    try:
        datamodule = build_datamodule(config)
    except DataError as error:
        print(f"without validation pairs: {error.problems[0]}", flush=True)
        return None
    datamodule.tokenizer = tokenizer
    return datamodule


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
