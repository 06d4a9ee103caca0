"""What is in a scene, apart from how it is drawn and described."""

from typing import NamedTuple


class Thing(NamedTuple):
    """One coloured shape: its name in captions, and its centre in pixels, radius in pixels and turn in radians."""

    color: str
    shape: str
    size: str
    texture: str
    place: str
    x: float
    y: float
    radius: float
    turn: float


class Scene(NamedTuple):
    """The content of a picture. Of two things the left one (or the upper one, where stacked) comes first."""

    things: tuple[Thing, ...]
    background: str
    stacked: bool = False
    digit: int | None = None
    ink: str | None = None  # colour of the digit; None: a scan, white on black
