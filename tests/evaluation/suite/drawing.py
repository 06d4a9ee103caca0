"""Drawn pictures and small files of test sets."""

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

KINDS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "ppm": "PPM", "gif": "GIF"}


@cache
def drawn(suffix: str, size: int = 8) -> bytes:
    """A picture with a red border of 2 pixels, encoded."""
    pixels = np.full((size, size, 3), 128, dtype=np.uint8)
    pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = ((255, 0, 0),) * 4
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, KINDS[suffix.lower()])
    return file.getvalue()


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn(path.suffix[1:]))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
