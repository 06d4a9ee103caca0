"""Writers of small data in the layouts that users have."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Members = Iterable[tuple[str, bytes]]


def jpeg(number: int, width: int = 40, height: int = 30) -> bytes:
    """A smooth picture that differs with its number."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([(x * 5 + number * 37) % 256, (y * 7 + number * 11) % 256, (x + y + number) % 256], axis=2)
    return encoded(Image.fromarray(pixels.astype(np.uint8)), "JPEG", quality=90)


def encoded(picture: Image.Image, kind: str, **settings: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **settings)
    return stream.getvalue()


def write_tar(path: Path, members: Members, kind: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs(first: int, count: int) -> list[tuple[str, bytes]]:
    """Members of `count` good samples."""
    members = []
    for number in range(first, first + count):
        members += [(f"{number:05d}.jpg", jpeg(number)), (f"{number:05d}.txt", f"picture number {number}".encode())]
    return members
