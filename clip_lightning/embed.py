"""Features of many images or texts as files: `python -m clip_lightning.embed RUN IMAGES --out DIR`.

Killed and started again, it continues; under torchrun, srun or in a SLURM job array, the processes share the parts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_lightning.errors import UserError, run_command

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clip_lightning.embed", description="Write the features of many images or texts as files."
    )
    parser.add_argument("source", metavar="RUN", help="directory of a run, or what model.pretrained takes")
    parser.add_argument("images", metavar="IMAGES", nargs="?", help="folder of images, tars, parquet files, a table")
    parser.add_argument("--texts", metavar="FILE", help="instead of images: a text file, one text per line")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the parts; what it holds is kept")
    parser.add_argument(
        "--format", choices=("parquet", "npy"), default="parquet", help="of the parts (default parquet)"
    )
    parser.add_argument(
        "--rows-per-part", type=int, default=65_536, metavar="N", help="rows of a file (default 65,536)"
    )
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="rows in a forward pass (default 64)")
    parser.add_argument("--device", default=None, help="default: the visible GPUs, or the CPU")
    parser.add_argument("--checkpoint", default="last", help="of a run: last, or the name of one")
    parser.add_argument("--weights", default="raw", choices=("raw", "ema"), help="of a run: raw, or their average")
    arguments = parser.parse_intermixed_args(argv)
    if (arguments.images is None) == (arguments.texts is None):
        raise UserError("name either IMAGES or --texts FILE")
    for name in ("rows_per_part", "batch"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(arguments, name)}")
    rows: Any = _texts(arguments.texts) if arguments.texts else _images(arguments.images)

    import torch  # slow to import, and not needed for --help

    from clip_lightning.training.embedding import embed_images_to, embed_texts_to, load

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load(arguments.source, checkpoint=arguments.checkpoint, weights=arguments.weights, device=device)
    embed = embed_texts_to if arguments.texts else embed_images_to
    written = embed(
        arguments.out,
        loaded,
        rows,
        batch=arguments.batch,
        rows_per_part=arguments.rows_per_part,
        file_format=arguments.format,
        report=lambda line: print(line, flush=True),
    )
    print(f"{written.folder}: {written.num_rows:,} rows, {written.num_unreadable:,} of them unreadable, "
          f"{written.num_resumed:,} parts from an earlier start")  # fmt: skip
    return 0


def _texts(file: str) -> list[str]:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts {file} cannot be read as UTF-8 text ({error})") from error


def _images(path: str) -> Any:
    """Paths of a folder's image files, or the layout of tars, parquet files and tables."""
    from clip_lightning.config import compose
    from clip_lightning.config.detect import data_option

    option = data_option(path)
    if option != "folder":
        from clip_lightning.data.layouts.layout import build_layout

        config = compose.load("train", [f"data={option}"], check=False)
        config.data.path = path
        return build_layout(config.data)
    from clip_lightning.data.layouts.folder import files_below

    folder = Path(path).expanduser()
    if folder.is_file():
        return [folder]
    files = (folder / name for names in files_below(folder) for name in names)
    return [file for file in files if file.suffix.lower() in IMAGE_ENDINGS and not file.name.startswith(".")]


if __name__ == "__main__":
    run_command(main)
