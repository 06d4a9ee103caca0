"""This project's own files, for `clip_lightning.load`: `model.safetensors`, `config.yaml`, the tokenizer."""

import copy
import shutil
from pathlib import Path

from safetensors.torch import save_file

from clip_lightning.config import compose
from clip_lightning.errors import UserError
from clip_lightning.tokenizer import files
from clip_lightning.training.any_model import OpenedModel
from clip_lightning.training.saved_model import TOKENIZER


def export(opened: OpenedModel, folder: Path) -> None:
    """Writes the files. Raises UserError of a model of another library, whose run has no config."""
    if opened.run is None:
        raise UserError("only a run of clip_lightning has a config to export; name the run's directory")
    config = copy.deepcopy(opened.run)
    config.model.vision.pretrained = config.model.text.pretrained = False
    config.model.pretrained = None
    (folder / "config.yaml").write_text(compose.dump(config), encoding="utf-8")
    state = opened.model.state_dict()
    save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / "model.safetensors")
    if opened.folder is not None and files.is_saved(opened.folder / TOKENIZER):
        shutil.copytree(opened.folder / TOKENIZER, folder / TOKENIZER)
