"""torch.compile block by block: like blocks share one compiled graph, so that the first step comes soon."""

from clip_lightning.model.clip import CLIP


def apply(model: CLIP) -> None:
    """Compiles each block in place; names in the state dict stay as they are, and what lies between stays eager."""
    for block in model.blocks():
        block.compile()
