"""The model of a finished or running run, from its directory: frozen config, checkpoint, weights.

A frozen config is data that somebody may have sent: an import path in it is called only when the command line allows
it, and no pretrained weights are fetched for it.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

from clip_lightning.config.checks.ranges import get
from clip_lightning.config.keys import table
from clip_lightning.config.schema import Config
from clip_lightning.errors import CheckpointError, UserError
from clip_lightning.model.clip import CLIP, build_clip
from clip_lightning.reliability.checkpoint import Checkpoint, CheckpointFolder, open_checkpoint
from clip_lightning.reliability.checkpoint_callback import TRAINING, model_weights
from clip_lightning.tokenizer.files import saved_text
from clip_lightning.training.ema import EmaWeights

# Folder of a run with the files of its tokenizer.
TOKENIZER = "tokenizer"


def targets(config: Config) -> dict[str, str]:
    """The import paths in a config, by key."""
    found = {key: get(config, key) for key in table(Config) if key.endswith("._target_")}
    return {key: target for key, target in found.items() if target is not None}


def refuse_targets(config: Config, allowed: Sequence[str]) -> None:
    """Raises UserError for each import path in a run's config that the command line does not allow."""
    if problems := [
        f"the run's {key}={target} would be imported and called; if you trust it: allow_target=[{target}]"
        for key, target in targets(config).items()
        if target not in allowed
    ]:
        raise UserError(*problems)


def find_checkpoint(path: Path, wanted: str) -> Checkpoint:
    """The newest checkpoint of a run that verifies (`last`), or one by its path or its name.

    Raises:
        CheckpointError: there is none, or the wanted one is damaged or not a checkpoint.
    """
    if wanted == "last":
        newest = CheckpointFolder(path / "checkpoints", keep_last=1).newest()
        if newest is None:
            raise CheckpointError(f"run={path}: no usable checkpoint in {path / 'checkpoints'}")
        return newest
    named = path / "checkpoints" / wanted
    return open_checkpoint(named if named.exists() else Path(wanted).expanduser())


def config_of_saved(config: Config, run: Path) -> Config:
    """A copy of a run's config that builds its model from what the run's directory holds.

    The checkpoint holds all weights, and the run its tokenizer and the encoder's configuration: neither the files of
    `pretrained` nor the hub or the original folders are needed. The copy is for building only: names and hashes are
    those of `config`.

    Raises:
        UserError: a saved file of the tokenizer has changed.
    """
    config = copy.deepcopy(config)
    config.model.vision.pretrained = config.model.text.pretrained = False
    config.model.pretrained = None
    config.model.text = saved_text(config.model.text, run / TOKENIZER)
    return config


def config_of_resume(config: Config, run: Path) -> Config:
    """What a start of `run` builds from: as `config_of_saved` once there is a checkpoint.

    Before, pretrained weights are still read from where the config says. Raises UserError as `config_of_saved`.
    """
    folder, towers = run / "checkpoints", (config.model.vision, config.model.text)
    # Verifying a checkpoint reads all of it; without pretrained weights both copies are equal.
    has_pretrained = config.model.pretrained is not None or any(tower.pretrained is not False for tower in towers)
    if has_pretrained and folder.is_dir() and CheckpointFolder(folder, keep_last=1).newest() is not None:
        return config_of_saved(config, run)
    config = copy.deepcopy(config)
    config.model.text = saved_text(config.model.text, run / TOKENIZER)
    return config


def load_model(config: Config, checkpoint: Checkpoint, weights: str = "raw") -> CLIP:
    """The model of a run with a checkpoint's weights, in evaluation mode, on the CPU.

    Args:
        config: of `config_of_saved`.
        weights: raw, or ema: their running average where the run keeps one.

    Raises:
        CheckpointError: the weights are those of another model.
        UserError: the run did not keep an average.
    """
    if weights == "ema" and config.compute.ema_decay is None:
        raise UserError(
            "weights=ema: the run kept no average of its weights (its compute.ema_decay is null); write weights=raw"
        )
    model = build_clip(config.model, config.loss)
    try:
        model.load_state_dict(model_weights(checkpoint))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path} holds another model's weights than config.yaml describes") from error
    if weights == "ema":
        average = EmaWeights(model, decay=0.0)
        average.load(checkpoint.load(TRAINING)["module"]["ema_weights"])
        average.put()
    return model.eval()
