"""A model in evaluation mode with its tokenizer, from a run's directory or from any source of `model.pretrained`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clip_lightning.config import compose
from clip_lightning.config.foreign import sources
from clip_lightning.config.schema import Config, LossConfig, ModelConfig, TextConfig
from clip_lightning.errors import UserError
from clip_lightning.model.clip import CLIP, build_clip
from clip_lightning.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from clip_lightning.training.saved_model import TOKENIZER, config_of_saved, find_checkpoint, load_model, refuse_targets

# Where a sigmoid model's bias begins whose weights have none (SigLIP, arXiv 2303.15343, section 3.2).
_BIAS = -10.0


class OpenedModel(NamedTuple):
    """A model, and what it was opened from.

    Attributes:
        config: of the model alone; `pretrained` names the source.
        run: config of the run or export of ours; None of another library's model.
        folder: of the run or of the source's files; None of a single file.
        samples_seen: of the checkpoint; None where the source does not say.
    """

    model: CLIP
    tokenizer: Tokenizer
    config: ModelConfig
    run: Config | None
    folder: Path | None
    samples_seen: int | None


def open_model(
    source: str | Path, *, checkpoint: str = "last", weights: str = "raw", allow_target: Sequence[str] = ()
) -> OpenedModel:
    """The model of a run, or of another library.

    Args:
        source: a run's directory, or what `model.pretrained` takes.
        checkpoint: of a run: last, or the name or path of one.
        weights: of a run: raw, or ema.
        allow_target: import paths in a run's config that may be imported and called.

    Raises:
        UserError, CheckpointError: there is no model, or it cannot be built.
    """
    path = Path(source).expanduser()
    if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
        return _open_run(path, checkpoint, weights, allow_target)
    if checkpoint != "last" or weights != "raw":
        raise UserError(
            f"{source} is not a run's directory: it has one set of weights; leave checkpoint and weights out"
        )
    found = sources.find(str(source))
    run = sources.own_config(found) if found.kind == "own" else None
    model = sources.architecture(found)
    model.pretrained = str(source)
    model.vision.pretrained = model.text.pretrained = False
    bias = _BIAS if model.loss == "sigmoid" else None
    loss = run.loss if run is not None else LossConfig(name=model.loss, logit_scale_max=None, logit_bias_init=bias)
    text = model.text
    if run is not None and found.folder is not None:
        model.text = config_of_saved(run, found.folder).model.text
    clip = build_clip(model, loss).eval()
    return OpenedModel(clip, _tokenizer(model.text, text, found.folder), model, run, found.folder, None)


def _open_run(path: Path, wanted: str, weights: str, allow_target: Sequence[str]) -> OpenedModel:
    config = compose.read(path / "config.yaml")
    refuse_targets(config, allow_target)
    saved = config_of_saved(config, path)
    checkpoint = find_checkpoint(path, wanted)
    clip = load_model(saved, checkpoint, weights)
    tokenizer = load_tokenizer(saved.model.text, path / TOKENIZER)
    return OpenedModel(clip, tokenizer, saved.model, config, path, checkpoint.samples_seen)


def _tokenizer(text: TextConfig, original: TextConfig, folder: Path | None) -> Tokenizer:
    """The tokenizer of the files beside the weights, or the one that the configuration names."""
    if folder is not None and (folder / TOKENIZER).is_dir():
        return load_tokenizer(original, folder / TOKENIZER)
    return build_tokenizer(text, None, None)
