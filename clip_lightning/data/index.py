"""The command that indexes tar shards ahead of a run: `python -m clip_lightning.data.index PATH...`."""

import argparse
import sys
from collections.abc import Sequence

from clip_lightning.config.schema import CacheConfig, DataConfig
from clip_lightning.data.layouts.index import Keys, index_sources, problems_of
from clip_lightning.data.layouts.layout import causes
from clip_lightning.data.remote.cache import ShardCache
from clip_lightning.data.sources import list_sources
from clip_lightning.errors import UserError, run_command

_SHOWN = 20  # problems that are printed


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    default = DataConfig()
    parser = argparse.ArgumentParser(prog="python -m clip_lightning.data.index", description="Index tar shards.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folder, tar, or pattern like {00000..00099}.tar")
    parser.add_argument("--index-folder", help="where sidecars are written, instead of beside the shards")
    parser.add_argument("--image-keys", nargs="+", default=default.image_keys, help="extensions of images")
    parser.add_argument(
        "--caption-keys", nargs="+", default=default.caption_keys, help="members or JSON keys of captions"
    )
    parser.add_argument("--workers", type=int, help="processes; one per core if left out")
    parser.add_argument("--force", action="store_true", help="write sidecars again that are up to date")
    arguments = parser.parse_args(argv)
    try:
        sources = [source for path in arguments.paths for source in list_sources(path, ".tar", "PATH")]
        sidecars = index_sources(
            sources,
            Keys(tuple(arguments.image_keys), tuple(arguments.caption_keys)),
            index_folder=arguments.index_folder,
            workers=arguments.workers,
            local=ShardCache(CacheConfig(folder=arguments.index_folder)).path,
            force=arguments.force,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    problems = problems_of(sources, sidecars)
    num_samples, left_out = sum(sidecar.num_samples for sidecar in sidecars), causes(problems) or "none"
    print(f"{num_samples:,} samples in {len(sidecars):,} shards; left out: {left_out}")
    for problem in problems[:_SHOWN]:
        print(f"  {problem.shard}: {problem.name or 'the shard'}: {problem.cause}")
    if len(problems) > _SHOWN:
        print(f"  and {len(problems) - _SHOWN:,} more")
    return 0


if __name__ == "__main__":
    run_command(main)
