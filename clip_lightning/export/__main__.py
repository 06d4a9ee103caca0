"""The command that exports a model: `python -m clip_lightning.export runs/DIR --to transformers --out DIR`."""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip_lightning.errors import UserError, run_command

LIBRARIES = (
    "transformers", "open_clip", "timm", "sentence-transformers", "safetensors", "onnx", "openvino", "executorch"
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clip_lightning.export", description="Write a trained model as files of another library."
    )
    parser.add_argument("source", metavar="RUN", help="directory of a run, or what model.pretrained takes")
    parser.add_argument("--to", required=True, choices=LIBRARIES, help="the library that loads the files")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; it must be new or empty")
    parser.add_argument("--checkpoint", default="last", help="of a run: last, or the name of one")
    parser.add_argument("--weights", default="raw", choices=("raw", "ema"), help="of a run: raw, or their average")
    parser.add_argument("--push", metavar="REPO", help="also upload the folder to this repository of the hub")
    arguments = parser.parse_args(argv)
    out = Path(arguments.out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder; name another, or delete it")
    found = write(arguments.source, arguments.to, out, checkpoint=arguments.checkpoint, weights=arguments.weights)
    print(f"{arguments.to}: {out}; {found}")
    if arguments.push:
        _push(out, arguments.push)
    return 0


def write(source: str, library: str, out: Path, *, checkpoint: str = "last", weights: str = "raw") -> str:
    """Writes and checks an export; the folder is complete or absent. Returns what the check found.

    Raises: UserError: the library has no such model, or reads the files otherwise.
    """
    # torch-heavy modules are imported once the arguments are known to be right.
    from clip_lightning.export import card, verify
    from clip_lightning.training.any_model import open_model

    opened = open_model(source, checkpoint=checkpoint, weights=weights)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _exporter(library)(opened, temporary)
        found = str(verify.verify(opened, library, temporary))
        card.write(opened, temporary, library, found, out.name)
        temporary.chmod(0o755)
        if out.exists():
            out.rmdir()  # an empty one
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def _exporter(library: str) -> Callable[[Any, Path], Any]:
    from clip_lightning.export import (
        to_executorch,
        to_onnx,
        to_open_clip,
        to_openvino,
        to_safetensors,
        to_sentence_transformers,
        to_timm,
        to_transformers,
    )

    return {
        "transformers": to_transformers.export,
        "open_clip": to_open_clip.export,
        "timm": to_timm.export,
        "sentence-transformers": to_sentence_transformers.export,
        "safetensors": to_safetensors.export,
        "onnx": to_onnx.export,
        "openvino": to_openvino.export,
        "executorch": to_executorch.export,
    }[library]


def _push(folder: Path, repository: str) -> None:
    """Uploads a folder to the hub. Raises UserError where the hub refuses it."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True, private=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # the hub's client raises classes of several libraries
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--push {repository}: the hub did not take it ({reason}); the folder {folder} is complete"
        ) from error
    print(f"uploaded to {repository}, private")


if __name__ == "__main__":
    run_command(main)
