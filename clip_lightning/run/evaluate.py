"""Evaluates a run's checkpoint: rebuilds the model from the run's frozen config, and measures what `eval=` names.

A frozen config is data that somebody may have sent: an import path in it is called only when the command line allows
it, and no pretrained weights are fetched for it.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from clip_lightning.config import compose, identity
from clip_lightning.config.keys import table
from clip_lightning.config.schema import Config, EvaluateConfig
from clip_lightning.config.values import get
from clip_lightning.data.datamodule import ContrastiveDataModule
from clip_lightning.errors import CheckpointError, DataError, UserError
from clip_lightning.evaluation.tasks import build_tasks
from clip_lightning.model.clip import CLIP, build_clip
from clip_lightning.records import Record, RecordWriter, read_records, write_parquet
from clip_lightning.reliability.checkpoint import Checkpoint, CheckpointFolder, open_checkpoint
from clip_lightning.reliability.checkpoint_callback import model_weights
from clip_lightning.run import provenance
from clip_lightning.run.hardware import uses_gpu
from clip_lightning.run.preflight import build_datamodule
from clip_lightning.run.session import evaluators, quiet_libraries
from clip_lightning.run.summary import score_table
from clip_lightning.tokenizer import build_tokenizer


def evaluate(config: EvaluateConfig) -> int:
    """Prints and records the scores of a checkpoint; returns the exit code.

    Tasks that are null are the run's own, and then its validation pairs are measured as well.

    Raises: UserError for what the user can mend.
    """
    quiet_libraries()
    path = Path(config.run).expanduser().resolve()
    frozen = compose.read(path / "config.yaml")
    refuse_targets(frozen, config.allow_target)
    frozen.model.vision.pretrained = frozen.model.text.pretrained = False  # the checkpoint holds all weights
    own = config.eval.tasks is None
    frozen.eval = replace(config.eval, tasks=frozen.eval.tasks if own else config.eval.tasks)
    tasks = build_tasks(frozen.eval.tasks or [], frozen.eval.folders)
    checkpoint = find_checkpoint(path, config.checkpoint)
    tokenizer = build_tokenizer(frozen.model.text, path / "tokenizer", None)
    datamodule = _validation(frozen) if own else None
    if datamodule is not None:
        datamodule.tokenizer = tokenizer
    device = torch.device("cuda" if uses_gpu(config.cluster.accelerator) else "cpu")
    model = load_model(frozen, checkpoint).to(device)
    measured = [
        replace(record, samples_seen=checkpoint.samples_seen)
        for evaluator in evaluators(frozen, tasks, datamodule)
        for record in evaluator.run(model, tokenizer, device)
    ]
    if not measured:
        raise UserError("eval: there is nothing to evaluate; write eval.tasks=[NAME,...] or eval.folders=[DIR,...]")
    _write(path, frozen, measured)
    print(f"{path.name} after {checkpoint.samples_seen:,} samples ({checkpoint.path})\n{score_table(measured)}")
    return 0


def refuse_targets(config: Config, allowed: Sequence[str]) -> None:
    """Raises UserError for each import path in a run's config that the command line does not allow."""
    keys = [key for key in table(Config) if key.endswith("._target_")]
    found = {key: get(config, key) for key in keys}
    if problems := [
        f"the run's {key}={target} would be imported and called; if you trust it: allow_target=[{target}]"
        for key, target in found.items()
        if target is not None and target not in allowed
    ]:
        raise UserError(*problems)


def find_checkpoint(path: Path, wanted: str) -> Checkpoint:
    """The newest checkpoint of a run that verifies (`last`), or one by its path or its name.

    Raises:
        CheckpointError: there is none, or the one asked for is damaged or no checkpoint.
    """
    if wanted == "last":
        newest = CheckpointFolder(path / "checkpoints", keep_last=1).newest()
        if newest is None:
            raise CheckpointError(f"run={path}: there is no usable checkpoint in {path / 'checkpoints'}")
        return newest
    named = path / "checkpoints" / wanted
    return open_checkpoint(named if named.exists() else Path(wanted).expanduser())


def load_model(config: Config, checkpoint: Checkpoint) -> CLIP:
    """The model of a run with a checkpoint's weights, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: the weights are those of another model.
    """
    model = build_clip(config.model, config.loss)
    try:
        model.load_state_dict(model_weights(checkpoint))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path} holds another model's weights than config.yaml describes") from error
    return model.eval()


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
