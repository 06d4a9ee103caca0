"""Files that `SentenceTransformer(DIR)` loads: transformers' CLIP or SigLIP, which it encodes images and texts with."""

import tempfile
from pathlib import Path

from clip_lightning.errors import UserError
from clip_lightning.export import to_transformers
from clip_lightning.training.any_model import OpenedModel

_HELD = ("clip", "siglip")


def export(opened: OpenedModel, folder: Path) -> None:
    """Writes the files; vectors have length 1.

    Raises: UserError: the package is missing, or the model is not one that sentence-transformers encodes with.
    """
    kind, reason = to_transformers.kind_of(opened)
    if kind not in _HELD:
        what = reason or f"it is a {kind}"
        raise UserError(f"sentence-transformers encodes images with CLIPModel and SiglipModel of transformers: {what}")
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Normalize, Transformer
    except ImportError as error:
        raise UserError("sentence-transformers is not installed; pip install clip_lightning[export]") from error
    with tempfile.TemporaryDirectory() as temporary:
        to_transformers.export(opened, Path(temporary))
        modules = [Transformer(temporary), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save(str(folder))
