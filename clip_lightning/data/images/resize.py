"""How an image becomes a square; without torch, so that tasks can be listed before it is imported."""

from typing import NamedTuple


class Resize(NamedTuple):
    """How an image becomes a square of `size` in use.

    Attributes:
        mode: shortest (short side to `size`, centre cut out), squash (both sides to `size`), longest (long side to
            `size`, the rest black).
        interpolation: bicubic or bilinear, both antialiased.
    """

    mode: str = "shortest"
    interpolation: str = "bicubic"


SHORTEST = Resize()
