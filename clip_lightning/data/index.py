"""The command that indexes tar shards ahead of a run: `python -m clip_lightning.data.index PATH...`."""

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import islice

from clip_lightning.config.schema import CacheConfig, DataConfig
from clip_lightning.data.layouts.index import Keys, StoredProblems, index_sources
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
    parser.add_argument("--force", action="store_true", help="also index shards whose sidecars are up to date")
    parser.add_argument(
        "--share",
        nargs=2,
        type=int,
        metavar=("K", "N"),
        help="every N-th shard from shard K on; of srun or torchrun, its rank",
    )
    arguments = parser.parse_args(argv)
    try:
        sources = [source for path in arguments.paths for source in list_sources(path, ".tar", "PATH")]
        share, num_shares = arguments.share or share_of_job()
        sources = sources[share::num_shares]
        sidecars = index_sources(
            sources,
            Keys(tuple(arguments.image_keys), tuple(arguments.caption_keys)),
            index_folder=arguments.index_folder,
            workers=arguments.workers,
            cache=ShardCache(CacheConfig(folder=arguments.index_folder)),
            force=arguments.force,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    problems = StoredProblems(sources, sidecars)
    num_samples, left_out = sum(sidecar.num_samples for sidecar in sidecars), causes(problems) or "none"
    of = f" (share {share} of {num_shares})" if num_shares > 1 else ""
    print(f"{num_samples:,} samples in {len(sidecars):,} shards{of}; left out: {left_out}")
    for problem in islice(problems, _SHOWN):
        print(f"  {problem.shard}: {problem.name or 'the shard'}: {problem.cause}")
    if len(problems) > _SHOWN:
        print(f"  and {len(problems) - _SHOWN:,} more")
    return 0


def share_of_job() -> tuple[int, int]:
    """This process's rank and the number of processes under torchrun or srun; 0 and 1 without either."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


if __name__ == "__main__":
    run_command(main)
