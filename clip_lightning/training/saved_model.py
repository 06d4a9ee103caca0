"""The model of a finished or running run, from its directory: frozen config, checkpoint, weights.

A frozen config is data that somebody may have sent: an import path in it is called only when the command line allows
it, and no pretrained weights are fetched for it.
"""

from collections.abc import Sequence
from pathlib import Path

from clip_lightning.config.checks.ranges import get
from clip_lightning.config.keys import table
from clip_lightning.config.schema import Config
from clip_lightning.errors import CheckpointError, UserError
from clip_lightning.model.clip import CLIP, build_clip
from clip_lightning.reliability.checkpoint import Checkpoint, CheckpointFolder, open_checkpoint
from clip_lightning.reliability.checkpoint_callback import TRAINING, model_weights
from clip_lightning.training.ema import EmaWeights


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
        CheckpointError: there is none, or the one asked for is damaged or no checkpoint.
    """
    if wanted == "last":
        newest = CheckpointFolder(path / "checkpoints", keep_last=1).newest()
        if newest is None:
            raise CheckpointError(f"run={path}: there is no usable checkpoint in {path / 'checkpoints'}")
        return newest
    named = path / "checkpoints" / wanted
    return open_checkpoint(named if named.exists() else Path(wanted).expanduser())


def load_model(config: Config, checkpoint: Checkpoint, weights: str = "raw") -> CLIP:
    """The model of a run with a checkpoint's weights, in evaluation mode, on the CPU.

    Args: weights: raw, or ema: their running average where they have one.
    Raises:
        CheckpointError: the weights are those of another model.
        UserError: an average is asked for that the run did not keep.
    """
    if weights == "ema" and config.compute.ema_decay is None:
        raise UserError(
            "weights=ema: the run kept no average of its weights (its compute.ema_decay is null); write weights=raw"
        )
    config.model.vision.pretrained = config.model.text.pretrained = False  # the checkpoint holds all weights
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
