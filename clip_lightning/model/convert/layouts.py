"""Which library's layout a state dict has, and its tensors under our names."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from clip_lightning.model.convert import open_clip, transformers
from clip_lightning.model.convert.names import under

OWN, OPEN_CLIP, TRANSFORMERS = "clip_lightning", "OpenAI's CLIP or open_clip", "CLIP or SigLIP of transformers"
TIMM, ENCODER = "an image tower of timm", "a text encoder of transformers"
KNOWN = (OWN, OPEN_CLIP, TRANSFORMERS, TIMM, ENCODER)
# A layout by what one of its names begins with; the first that fits is taken.
_STARTS = {
    "vision.backbone.": OWN,
    "visual.": OPEN_CLIP,
    "vision_model.": TRANSFORMERS,
    "text_model.": TRANSFORMERS,
    "embeddings.": ENCODER,
    "encoder.layer": ENCODER,
    "transformer.layer": ENCODER,
    "layers.": ENCODER,
    "patch_embed.": TIMM,
    "blocks.": TIMM,
    "stem.": TIMM,
    "stages.": TIMM,
    "conv1.": TIMM,
}


def layout_of(names: Iterable[str]) -> str | None:
    """The layout of a state dict; None where no known one fits."""
    listed = list(names)
    return next((kind for start, kind in _STARTS.items() if any(name.startswith(start) for name in listed)), None)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of any known layout under our names; of a tower alone, that tower's.

    Raises: KeyError: a name that the layout does not have.
    """
    layout = layout_of(state)
    if layout == OPEN_CLIP:
        return open_clip.convert(state)
    if layout == TRANSFORMERS:
        return transformers.convert(state)
    if layout == TIMM:
        return under("vision.backbone.", state)
    if layout == ENCODER:
        return under(
            "text.encoder.", {name: value for name, value in state.items() if not name.endswith("position_ids")}
        )
    if layout == OWN:
        return dict(state)
    raise KeyError(next(iter(state), ""))
