"""torch.compile block by block: equal blocks share one compiled graph, which keeps the first step short."""

from clip_lightning.model.clip import CLIP

# Beyond torch's 8 the blocks of a class would run eagerly, with one warning. The 8 kinds of a ResNet (the first and the
# others of each stage) times 3 (with gradients, the first pass of cached gradients, evaluation) times 2 (fixed sizes of
# batch or image, then variable ones) are 48.
MOST_GRAPHS = 64


def apply(model: CLIP) -> None:
    """Compiles each block in place; names in the state dict do not change, and code between blocks stays eager."""
    for block in model.blocks():
        block.compile(recompile_limit=MOST_GRAPHS)
