"""Two ExecuTorch programs, `image.pte` and `text.pte`; inputs and outputs are those of `graphs`.

An ExecuTorch program reserves its memory ahead, so the batch has a largest size; what XNNPACK can run, it runs.
"""

import json
import warnings
from pathlib import Path

from clip_lightning.errors import UserError
from clip_lightning.export import graphs
from clip_lightning.training.any_model import OpenedModel

MOST_IN_BATCH = 8


def export(opened: OpenedModel, folder: Path) -> None:
    """Writes both programs, and what `graphs.about` says in `about.json`.

    Raises: UserError: the package executorch is missing, or a tower cannot be traced or lowered.
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise UserError("--to executorch needs executorch; pip install clip_lightning[executorch]") from error
    for name, program in graphs.trace(opened, MOST_IN_BATCH):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        except Exception as error:  # its passes raise exceptions of many kinds
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"executorch cannot lower the {name} tower of this model ({reason})") from error
        (folder / f"{name}.pte").write_bytes(lowered.buffer)
    facts = graphs.about(opened) | {"largest_batch": str(MOST_IN_BATCH)}
    (folder / "about.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
