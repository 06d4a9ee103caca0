"""A zero-shot task of five images in CLIP_benchmark's layout."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(k: int, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), k * 20, dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_folder(folder: Path) -> Path:
    """Two shards of three and two images in three classes."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("red {dark}\ngreen\nblue\n", encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}\n", encoding="utf-8")
    (folder / "test" / "nshards.txt").write_text("2", encoding="utf-8")
    kinds = {0: "png", 1: "jpeg", 2: "webp", 3: "jpg", 4: "png"}
    for shard, samples in ((0, (0, 1, 2)), (1, (3, 4))):
        members = {}
        for k in samples:
            members[f"x/s{k}.{kinds[k]}"] = encoded(k, kinds[k].replace("jpg", "jpeg"))
            members[f"x/s{k}.cls"] = str(k % 3).encode()
        write_tar(folder / "test" / f"{shard}.tar", members)
    return folder
